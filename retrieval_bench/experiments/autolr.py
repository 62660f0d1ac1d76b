"""The AutoLR paper's ablation, figure and comparison (Ro and Choi, AAAI 2021, arXiv 2002.06048), in three sizes.

Blocks are numbered 1 to 16 as in the paper. Its setting: ImageNet ResNet-50, images squashed to 224 pixels, softmax
with a 512-unit bottleneck, SGD with Nesterov momentum at 0.001 (head 0.01), a fifth of that after four fifths of 50
epochs, batches of 40, features of image and mirror added.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from retrieval_bench.config import RunConfig, unflatten
from retrieval_bench.experiments.benchmarks import ALL_CLASSES, FEW_CLASSES, PATTERNS
from retrieval_bench.experiments.experiment import DRAWN, Experiment, Profile, Row, named_rows
from retrieval_bench.figures.variation import weight_variation
from retrieval_bench.reported import reported_source
from retrieval_bench.sections import DataConfig, EvalConfig, LossConfig, ModelConfig, TrainConfig
from retrieval_bench.strategies.low_high import LowHigh

PAPER = RunConfig(
    data=DataConfig(dataset="cub", image_size=224, preprocessing="squash"),
    model=ModelConfig(backbone="torchvision/resnet50"),
    loss=LossConfig(loss="softmax", head="autolr", loss_lr=0.01, loss_weight_decay=5e-4),
    train=TrainConfig(
        epochs=50,
        batch_size=40,
        samples_per_class=0,
        optimizer="sgd",
        lr=0.001,
        weight_decay=5e-4,
        schedule="step",
        freeze_bn=False,
    ),
    evaluation=EvalConfig(flip_sum=True),
)
SHORT = {"train.schedule": "constant"}
PROFILES = {
    "paper": Profile("the paper's setting", PAPER),
    "cpu": Profile(
        "smaller than the paper's setting, for 2 CPU cores: fewer classes, pixels and epochs, a constant rate, "
        "images kept at 256 px",
        unflatten({**FEW_CLASSES, **SHORT, "train.epochs": 2}, PAPER),
    ),
    "cpu_full": Profile(
        "all of CUB, smaller than the paper's setting for 2 CPU cores: fewer pixels and epochs, images kept at 256 px, "
        "bfloat16 passes in training",
        unflatten(ALL_CLASSES, PAPER),
    ),
    "smoke": Profile(DRAWN, unflatten({**PATTERNS, **SHORT, "train.epochs": 1}, PAPER), (0, 1)),
}

LAST_TWO = {"options.layer_pruning.drop": "15,16"}
BOTH = {"strategy": "layer_pruning+autolr", **LAST_TWO}
MARKS = (
    "† low layers' rate lowered, ‡ high layers' rate raised, ☆ both; the paper's factors are not known here: a fifth "
    "and five times."
)
LOSSES = "Triplet and proxy-anchor are trained with AdamW, softmax with SGD as in the paper: compare rows of one loss."


def ablation(base: RunConfig) -> list[Row]:
    """The seven rows of the paper's ablation of layer-wise pruning; and, where they were run, frozen features, and
    AutoLR without and with pruning, which finds rates by itself."""
    changes: dict[str, dict[str, Any]] = {"Original": {"strategy": "standard"}}
    for blocks in ("16", "15,16", "14,15,16"):
        name = f"Pruning {blocks.replace(',', ', ')}"
        changes[name] = {"strategy": "layer_pruning", "options.layer_pruning.drop": blocks}
    usual = LowHigh.Options()
    for mark, low, high in (("†", usual.low, 1.0), ("‡", 1.0, usual.high), ("☆", usual.low, usual.high)):
        factors = {"options.low_high.low": low, "options.low_high.high": high}
        changes[f"Pruning 15, 16 {mark}"] = {"strategy": "layer_pruning+low_high", **LAST_TWO, **factors}
    more = {"Frozen": {"strategy": "frozen"}, "AutoLR": {"strategy": "autolr"}, "Pruning 15, 16 and AutoLR": BOTH}
    beside = [replace(row, optional=True) for row in named_rows(base, more, "Original")]
    return named_rows(base, changes, "Original", "ablation_pruning") + beside


def figure(base: RunConfig) -> list[Row]:
    """What the paper's figure of weight variations compares."""
    changes = {"One learning rate": {"strategy": "weight_variation"}, "Pruning 15, 16 and AutoLR": BOTH}
    return named_rows(base, changes, "One learning rate")


def comparison(base: RunConfig) -> list[Row]:
    """No training, standard fine-tuning, pruning, AutoLR and both, under three losses.

    The metric losses take AdamW at 1e-4 (proxies 1e-2), as Proxy-Anchor's authors do for ResNet-50; all else stays as
    it is. Compare rows of one loss.
    """
    adamw = {"train.optimizer": "adamw", "train.lr": 1e-4, "train.weight_decay": 1e-4}
    usual = {"loss.head": "linear", "loss.loss_lr": 1e-2, "loss.loss_weight_decay": 0.0}
    losses: dict[str, dict[str, Any]] = {
        "softmax": {"loss.loss": "softmax"},
        "triplet": {"loss.loss": "triplet", "train.samples_per_class": 4, **adamw, **usual},
        "proxy-anchor": {"loss.loss": "proxy_anchor", "train.samples_per_class": 0, **adamw, **usual},
    }
    compared = {
        "Standard": {"strategy": "standard"},
        "Pruning 15, 16": {"strategy": "layer_pruning", **LAST_TWO},
        "AutoLR": {"strategy": "autolr"},
        "Pruning 15, 16 and AutoLR": BOTH,
    }
    rows = named_rows(base, {"Frozen": {"strategy": "frozen", **losses["softmax"]}})
    for loss, settings in losses.items():
        changes = {f"{name}, {loss}": {**settings, **values} for name, values in compared.items()}
        rows += named_rows(base, changes, f"Standard, {loss}")
    return rows


def learning_rates(base: RunConfig) -> list[Row]:
    """AutoLR beside other ways to set learning rates, all on the whole network."""
    changes = {
        "Single rate": {"strategy": "standard"},
        "Layer-wise decay": {"strategy": "layerwise_decay"},
        "Low and high by hand": {"strategy": "low_high"},
        "Cosine": {"strategy": "standard", "train.schedule": "cosine"},
        "Triangular cycles": {"strategy": "standard", "train.schedule": "triangular"},
        "Warm restarts": {"strategy": "standard", "train.schedule": "warm_restarts"},
        "AutoLR": {"strategy": "autolr"},
    }
    return named_rows(base, changes, "Single rate")


EXPERIMENTS = {
    "ablation_pruning": Experiment(
        "the AutoLR paper's ablation of layer-wise pruning, reported and measured",
        PROFILES,
        ablation,
        (MARKS,),
        f"Reported: {reported_source('ablation_pruning')}.",
    ),
    "figure_weight_variation": Experiment(
        "weight variations and rates under one rate and under AutoLR, as a figure",
        PROFILES,
        figure,
        figure=weight_variation,
    ),
    "table_autolr": Experiment(
        "frozen, standard, pruned, AutoLR and both under softmax, triplet and proxy-anchor",
        PROFILES,
        comparison,
        (LOSSES,),
    ),
    "learning_rates": Experiment(
        "AutoLR beside layer-wise decay, rates by hand, cycles and warm restarts", PROFILES, learning_rates
    ),
}
