"""The SpotTune paper's table (Guo et al., CVPR 2019, arXiv 1811.08737), and its routes as a figure.

Its setting for the five data sets: ResNet-50 from ImageNet, SGD with momentum, 40 epochs in batches of 32, the network
at 0.01, the policy at 0.0001, both a tenth after epochs 15 and 30; closed sets, top-1 accuracy. These figures and the
policy network (ResNet-34) are remembered, not read; the weight decay is ours.
"""

from __future__ import annotations

from typing import Any

from retrieval_bench.config import RunConfig, unflatten
from retrieval_bench.experiments.benchmarks import ALL_CLASSES, FEW_CLASSES, PATTERNS
from retrieval_bench.experiments.experiment import DRAWN, Experiment, Profile, Row, named_rows
from retrieval_bench.figures.routes import routes as routes_figure
from retrieval_bench.reported import reported_source
from retrieval_bench.sections import DataConfig, LossConfig, ModelConfig, TrainConfig
from retrieval_bench.strategies.l2sp import L2SP

ROUTES = {"options.spottune.eval_policy": "argmax,all_tuned,all_frozen,majority,sample"}
SGD = RunConfig(
    data=DataConfig(dataset="cub", split="closed_set", image_size=224),
    model=ModelConfig(backbone="torchvision/resnet50"),
    loss=LossConfig(loss="softmax", loss_lr=0.01, loss_weight_decay=1e-4),
    train=TrainConfig(
        epochs=40,
        batch_size=32,
        optimizer="sgd",
        lr=0.01,
        weight_decay=1e-4,
        schedule="step",
        decay_at=15 / 40,
        second_decay_at=30 / 40,
        decay_factor=0.1,
        freeze_bn=False,
    ),
)
POLICIES = ("spottune", "global_k")
LARGE_POLICY = {f"options.{name}.policy": "torchvision/resnet34" for name in POLICIES}
LARGE_POLICY |= {f"options.{name}.policy_lr": 1e-4 for name in POLICIES}
SMALL = {f"options.{name}.policy_lr": 0.01 for name in POLICIES} | {"train.epochs": 4}
PROFILES = {
    "paper": Profile("the paper's setting, as far as it is known", unflatten(LARGE_POLICY, SGD)),
    "cpu": Profile(
        "smaller than the paper's setting, for 2 CPU cores: fewer classes, pixels and epochs, a small policy network "
        "at 0.01",
        unflatten({**SMALL, **FEW_CLASSES}, SGD),
    ),
    "cpu_full": Profile(
        "all 200 species, smaller than the paper's setting for 2 CPU cores: fewer pixels and epochs, images kept at "
        "256 px, a small policy network at 0.01, bfloat16 passes in training",
        unflatten({**SMALL, **ALL_CLASSES, "data.image_size": 96}, SGD),
    ),
    "smoke": Profile(DRAWN, unflatten({**SMALL, **PATTERNS}, SGD), (0, 1)),
}
NOTE = (
    "SGD with Nesterov momentum; the L2-SP row holds the classifier by a weight decay of 0.01 (beta), the others by "
    "0.0001."
)


def table(base: RunConfig) -> list[Row]:
    """The rows of the paper's table, and rollback, which it does not have."""
    changes: dict[str, dict[str, Any]] = {
        "Feature extractor": {"strategy": "frozen"},
        "Standard": {"strategy": "standard"},
        "Stochastic": {"strategy": "stochastic"},
        **{f"Last {k}": {"strategy": "last_k", "options.last_k.k": k} for k in (3, 2, 1)},
        "Random policy": {"strategy": "random_policy"},
        "ResNet-101": {"strategy": "standard", "model.backbone": base.model.backbone.removesuffix("50") + "101"},
        "L2-SP": {"strategy": "l2sp", "loss.loss_weight_decay": L2SP.Options().beta},  # beta holds the classifier
        "Progressive": {"strategy": "progressive"},
        "SpotTune, tuned blocks only": {"strategy": "spottune", **ROUTES},
        "SpotTune Global-k": {"strategy": "global_k"},
        "SpotTune": {"strategy": "spottune", **ROUTES},
        "Rollback": {"strategy": "rollback"},
    }
    if not base.model.backbone.endswith("resnet50") or base.model.weights != "imagenet":
        del changes["ResNet-101"]  # a file fits one architecture only
    return named_rows(base, changes, "Standard", "table_spottune", {"SpotTune, tuned blocks only": "all_tuned"})


def routes(base: RunConfig) -> list[Row]:
    """SpotTune's ways to route at test."""
    modes = {
        "Most probable block": "",
        "Drawn": "sample",
        "Majority of the training images": "majority",
        "All tuned": "all_tuned",
        "All frozen": "all_frozen",
    }
    changes = {name: {"strategy": "spottune", **ROUTES} for name in modes}
    return named_rows(base, changes, "Most probable block", eval_modes=modes)


EXPERIMENTS = {
    "table_spottune": Experiment(
        "the SpotTune paper's table, reported and measured; --dataset chooses one of its five sets",
        PROFILES,
        table,
        (NOTE,),
        f"Reported: {reported_source('table_spottune')}.",
    ),
    "figure_routes": Experiment(
        "which blocks SpotTune tunes for which images, as a figure", PROFILES, routes, figure=routes_figure
    ),
}
