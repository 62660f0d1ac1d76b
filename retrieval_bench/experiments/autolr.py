"""The AutoLR paper's ablation, figure and comparison (Ro and Choi, AAAI 2021, arXiv 2002.06048) as studies, in three sizes.

Blocks are numbered 1 to 16 as in the paper. Its setting: ImageNet ResNet-50, images squashed to 224 pixels, softmax with a 512-unit
bottleneck, SGD with Nesterov momentum at 0.001 (head 0.01), a fifth of that after four fifths of 50 epochs, batches of 40, features of
image and mirror added.
"""

from __future__ import annotations

from dataclasses import replace

from retrieval_bench.config import RunConfig
from retrieval_bench.experiments.study import NOTHING, Profile, Row, Study, row
from retrieval_bench.figures import variation
from retrieval_bench.sections import DataConfig, EvalConfig, LossConfig, ModelConfig, TrainConfig
from retrieval_bench.strategies.layer_pruning import LayerPruning
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
CPU = replace(
    PAPER,
    data=replace(PAPER.data, image_size=96, classes=24, stored=256, reader="cache"),
    train=replace(PAPER.train, epochs=2, schedule="constant"),
)
SMOKE = replace(
    PAPER,
    data=replace(PAPER.data, dataset="synthetic", image_size=32, flip=False),
    model=ModelConfig(backbone="resnet50", weights="none"),
    train=replace(PAPER.train, epochs=1, batch_size=16, schedule="constant"),
)
PROFILES = {
    "paper": Profile("the paper's setting", PAPER, (0, 1, 2)),
    "cpu": Profile(
        "smaller than the paper's setting, for 2 CPU cores: fewer classes, pixels and epochs, a constant rate, images kept at 256 px",
        CPU,
        (0, 1, 2),
    ),
    "smoke": Profile(NOTHING, SMOKE, (0, 1)),
}

LAST_TWO = LayerPruning.Options(drop="15,16")
BOTH = "layer_pruning+autolr"
MARKS = "† low layers' rate lowered, ‡ high layers' rate raised, ☆ both; the paper's factors are not known here: a fifth and five times."
LOSSES = "Triplet and proxy-anchor are trained with AdamW, softmax with SGD as in the paper: compare rows of one loss."
QUOTED = "Quoted: table of Ro and Choi, AutoLR (AAAI 2021), read in a review that names no data set; CUB-200-2011 is presumed."


def ablation(base: RunConfig) -> list[Row]:
    """The seven rows of the paper's ablation of layer-wise pruning."""
    first = "Original"

    def published(*recalls: float) -> dict[str, float]:
        names = [f"recall_at_{k}" for k in (1, 2, 4, 8)]
        return dict(zip(names, recalls, strict=True)) if base.data.dataset == "cub" else {}

    def pruned(name: str, drop: str, *quoted: float) -> Row:
        return row(
            base, name, "layer_pruning", published(*quoted), first, layer_pruning=LayerPruning.Options(drop=drop)
        )

    def rated(mark: str, low: float, high: float, *quoted: float) -> Row:
        options = {"layer_pruning": LAST_TWO, "low_high": LowHigh.Options(low=low, high=high)}
        return row(base, f"Pruning 15, 16 {mark}", "layer_pruning+low_high", published(*quoted), first, **options)

    usual = LowHigh.Options()
    return [
        row(base, first, "standard", published(63.49, 75.03, 84.00, 90.58)),
        pruned("Pruning 16", "16", 66.95, 77.63, 86.39, 92.00),
        pruned("Pruning 15, 16", "15,16", 67.00, 78.49, 86.85, 92.07),
        pruned("Pruning 14, 15, 16", "14,15,16", 51.00, 64.16, 75.44, 85.94),
        rated("†", usual.low, 1.0, 67.15, 78.61, 86.83, 92.08),
        rated("‡", 1.0, usual.high, 67.29, 79.15, 87.36, 92.66),
        rated("☆", usual.low, usual.high, 68.33, 79.88, 87.69, 92.71),
    ]


def figure(base: RunConfig) -> list[Row]:
    """What the paper's figure of weight variations compares."""
    return [
        row(base, "One learning rate", "weight_variation"),
        row(base, "Pruning 15, 16 and AutoLR", BOTH, against="One learning rate", layer_pruning=LAST_TWO),
    ]


def comparison(base: RunConfig) -> list[Row]:
    """No training, standard fine-tuning, pruning, AutoLR and both, under three losses.

    The metric losses take AdamW at 1e-4 (proxies 1e-2), as Proxy-Anchor's authors do for ResNet-50; all else stays as it is. Compare rows
    of one loss.
    """
    train = replace(base.train, optimizer="adamw", lr=1e-4, weight_decay=1e-4)
    metric = LossConfig(loss="proxy_anchor")
    settings = {
        "softmax": replace(base, loss=replace(base.loss, loss="softmax")),
        "triplet": replace(base, loss=replace(metric, loss="triplet"), train=replace(train, samples_per_class=4)),
        "proxy-anchor": replace(base, loss=metric, train=replace(train, samples_per_class=0)),
    }
    rows = [row(settings["softmax"], "Frozen", "frozen")]
    for name, config in settings.items():
        first = f"Standard, {name}"
        rows += [
            row(config, first, "standard"),
            row(config, f"Pruning 15, 16, {name}", "layer_pruning", against=first, layer_pruning=LAST_TWO),
            row(config, f"AutoLR, {name}", "autolr", against=first),
            row(config, f"Pruning 15, 16 and AutoLR, {name}", BOTH, against=first, layer_pruning=LAST_TWO),
        ]
    return rows


def learning_rates(base: RunConfig) -> list[Row]:
    """AutoLR beside other ways to set learning rates, all on the whole network."""
    first = "Single rate"

    def scheduled(name: str, schedule: str) -> Row:
        train = replace(base.train, schedule=schedule)  # pyright: ignore[reportArgumentType]
        return row(replace(base, train=train), name, "standard", against=first)

    return [
        row(base, first, "standard"),
        row(base, "Layer-wise decay", "layerwise_decay", against=first),
        row(base, "Low and high by hand", "low_high", against=first),
        scheduled("Cosine", "cosine"),
        scheduled("Triangular cycles", "triangular"),
        scheduled("Warm restarts", "warm_restarts"),
        row(base, "AutoLR", "autolr", against=first),
    ]


STUDIES = {
    "ablation_pruning": Study(
        "the AutoLR paper's ablation of layer-wise pruning, quoted and measured", ablation, PROFILES, (MARKS,), QUOTED
    ),
    "figure_weight_variation": Study(
        "weight variations and rates under one rate and under AutoLR, as a figure",
        figure,
        PROFILES,
        draw=variation.draw,
    ),
    "table_autolr": Study(
        "frozen, standard, pruned, AutoLR and both under softmax, triplet and proxy-anchor",
        comparison,
        PROFILES,
        (LOSSES,),
    ),
    "learning_rates": Study(
        "AutoLR beside layer-wise decay, rates by hand, cycles and warm restarts", learning_rates, PROFILES
    ),
}
