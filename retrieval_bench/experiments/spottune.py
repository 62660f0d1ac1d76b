"""The SpotTune paper's table (Guo et al., CVPR 2019, arXiv 1811.08737), its routes as a figure, and all strategies side
by side.

Its setting for the five data sets: ResNet-50 from ImageNet, SGD with momentum, 40 epochs in batches of 32, the network
at 0.01, the policy at 0.0001, both a tenth after epochs 15 and 30; closed sets, top-1 accuracy. These figures and the
policy network (ResNet-34) are remembered, not read; the weight decay is ours.
"""

from __future__ import annotations

from typing import Any

from retrieval_bench.config import RunConfig, unflatten
from retrieval_bench.experiments.benchmarks import CUB_224, EMOJI, FEW_CLASSES, PATTERNS, PHOTOS, SYNTHETIC
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


COMPARED = {
    "Standard": "standard",
    "Feature extractor": "frozen",
    "Last 3": "last_k",
    "Stochastic": "stochastic",
    "Random policy": "random_policy",
    "Layer-wise decay": "layerwise_decay",
    "Low and high by hand": "low_high",
    "L2-SP": "l2sp",
    "Rollback": "rollback",
    "Progressive": "progressive",
    "Layer pruning": "layer_pruning",
    "AutoLR": "autolr",
    "Layer pruning and AutoLR": "layer_pruning+autolr",
    "L2-SP and AutoLR": "l2sp+autolr",
    "Layer pruning and L2-SP": "layer_pruning+l2sp",
    "SpotTune Global-k": "global_k",
    "SpotTune": "spottune",
    "Channels by magnitude": "channel_pruning",
    "Channels by gates": "channel_gates",
    "BitFit": "bitfit",
    "Norms only": "norm_tuning",
    "Surgical, by gradient norms": "surgical",
    "Averaged weights": "ema",
    "WiSE-FT": "wise_ft",
    "AutoLR, rates scaled to three times": "autolr",
    "Standard with SGD": "standard",
    "AutoLR with SGD": "autolr",
    "Layer pruning and AutoLR with SGD": "layer_pruning+autolr",
}
NORMS = {"train.freeze_bn": False}
WITH_SGD = {"train.optimizer": "sgd", "train.lr": 0.01, "loss.loss_lr": 1.0}
MORE: dict[str, dict[str, Any]] = {
    "BitFit": NORMS,
    "Norms only": NORMS,
    "AutoLR, rates scaled to three times": {"options.autolr.rise": 3.0},
    **{name: WITH_SGD for name in COMPARED if name.endswith("with SGD")},
}
"""What rows change beside the strategy. Some train batch norms, which the others keep. AutoLR's derivation holds for
SGD; its rates are SpotTune's for the network, and one that moves proxies about as far as AdamW's 0.01, not searched."""


def strategies(base: RunConfig) -> list[Row]:
    """Every strategy at its defaults under one protocol, AutoLR also with L2-SP, layer pruning and SGD."""
    changes = {name: {"strategy": strategy, **MORE.get(name, {})} for name, strategy in COMPARED.items()}
    sgd = {name: changes.pop(name) for name in COMPARED if MORE.get(name) is WITH_SGD}
    return named_rows(base, changes, "Standard") + named_rows(base, sgd, "Standard with SGD")


_THREE_PERIODS = {"options.rollback.periods": 3, "train.epochs": 3}
ZERO_SHOT = {
    "paper": Profile("ResNet-50, 512 dimensions, proxy-anchor, 224 px, 40 epochs: for a GPU", CUB_224),
    "cpu": Profile(
        "a small protocol for 2 CPU cores: EfficientNet-lite0, proxy-anchor, few classes, rollback in three periods",
        unflatten({**_THREE_PERIODS, "data.dataset": "cub", "data.classes": 24}, RunConfig(data=PHOTOS)),
        (0,),
    ),
    "emoji": Profile(
        "drawings of emoji by seven vendors (pip brings images and weights): EfficientNet-lite0, proxy-anchor, "
        "rollback in three periods",
        unflatten(
            {**_THREE_PERIODS, "data.classes": 100, "data.stored": 72, "data.reader": "cache"}, RunConfig(data=EMOJI)
        ),
    ),
    "smoke": Profile(DRAWN, SYNTHETIC.changed(model__backbone="resnet26"), (0, 1)),
}

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
    "table_strategies": Experiment("every strategy under one retrieval protocol", ZERO_SHOT, strategies),
}
