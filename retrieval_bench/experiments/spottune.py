"""The SpotTune paper's table (Guo et al., CVPR 2019, arXiv 1811.08737), its routes as pictures, and all strategies side by side.

Its setting for the five data sets: ResNet-50 from ImageNet, SGD with momentum, 40 epochs in batches of 32, the network at 0.01, the policy
at 0.0001, both a tenth after epochs 15 and 30; closed sets, top-1 accuracy. These figures and the policy network (ResNet-34) are
remembered, not read; the weight decay is ours.
"""

from __future__ import annotations

from dataclasses import replace

from retrieval_bench.config import RunConfig
from retrieval_bench.experiments import BENCHES, EMOJI, PHOTOS
from retrieval_bench.experiments.study import NOTHING, Profile, Row, Study, row
from retrieval_bench.figures.routes import draw as draw_routes
from retrieval_bench.sections import DataConfig, LossConfig, ModelConfig, TrainConfig
from retrieval_bench.strategies import StrategyOptions
from retrieval_bench.strategies.global_k import GlobalK
from retrieval_bench.strategies.l2sp import L2SP
from retrieval_bench.strategies.last_k import LastK
from retrieval_bench.strategies.rollback import Rollback
from retrieval_bench.strategies.spottune import SpotTune

ROUTES = "argmax,all_tuned,all_frozen,majority,sample"
PAPER = RunConfig(
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
    options=StrategyOptions(
        spottune=SpotTune.Options(policy="torchvision/resnet34", policy_lr=1e-4),
        global_k=GlobalK.Options(policy="torchvision/resnet34", policy_lr=1e-4),
    ),
)
LITTLE = StrategyOptions(
    spottune=SpotTune.Options(policy_lr=0.01),
    global_k=GlobalK.Options(policy_lr=0.01),
)
CPU = replace(
    PAPER,
    data=replace(PAPER.data, image_size=96, classes=24, stored=256, reader="cache"),
    train=replace(PAPER.train, epochs=4),
    options=LITTLE,
)
SYNTHETIC = DataConfig(dataset="synthetic", split="closed_set", image_size=32, flip=False)
SMOKE = replace(
    PAPER,
    data=SYNTHETIC,
    model=ModelConfig(backbone="resnet50", weights="none"),
    train=replace(PAPER.train, epochs=4, batch_size=16),
    options=LITTLE,
)
PROFILES = {
    "paper": Profile("the paper's setting, as far as it is known", PAPER, (0, 1, 2)),
    "cpu": Profile(
        "smaller than the paper's setting, for 2 CPU cores: fewer classes, pixels and epochs, a small policy network at 0.01",
        CPU,
        (0, 1, 2),
    ),
    "smoke": Profile(NOTHING, SMOKE, (0, 1)),
}
QUOTED = (
    "Quoted: top-1 accuracy in Guo et al., SpotTune (CVPR 2019), table of five data sets, closed sets with all classes."
)
NOTE = "SGD with Nesterov momentum; the L2-SP row holds the classifier by a weight decay of 0.01 (beta), the others by 0.0001."
TABLE = {
    "Feature extractor": (74.07, 70.81, 85.67, 61.60, 75.50),
    "Standard": (81.86, 89.74, 93.67, 75.60, 79.58),
    "Stochastic": (81.03, 88.94, 92.95, 73.06, 78.30),
    "Last 3": (81.54, 88.21, 89.03, 72.68, 77.72),
    "Last 2": (80.34, 85.36, 91.81, 70.82, 78.37),
    "Last 1": (78.68, 81.73, 89.99, 68.96, 77.20),
    "Random policy": (81.63, 88.57, 93.44, 73.82, 78.30),
    "ResNet-101": (82.13, 90.32, 94.21, 76.52, 78.92),
    "L2-SP": (83.69, 91.08, 95.21, 75.38, 79.60),
    "Progressive": (83.08, 91.59, 95.55, 75.41, 79.71),
    "SpotTune, tuned blocks only": (82.36, 92.04, 93.49, 67.27, 78.88),
    "SpotTune Global-k": (83.48, 90.51, 96.60, 75.63, 80.02),
    "SpotTune": (84.03, 92.40, 96.34, 75.77, 80.20),
}
"""The paper's accuracies in percent, for each of :data:`SETS`."""
SETS = ("cub", "cars", "flowers", "wikiart", "sketches")


def table(base: RunConfig) -> list[Row]:
    """The rows of the paper's table, and rollback, which it does not have."""
    place = SETS.index(base.data.dataset) if base.data.dataset in SETS else None

    def entry(name: str, strategy: str, config: RunConfig = base, **options: object) -> Row:
        quoted = {"accuracy": TABLE[name][place]} if place is not None and name in TABLE else {}
        return row(config, name, strategy, quoted, "" if name == "Standard" else "Standard", **options)

    shared = {"spottune": replace(base.options.spottune, eval_policy=ROUTES)}
    decayed = replace(base, loss=replace(base.loss, loss_weight_decay=L2SP.Options.beta))  # beta holds the classifier
    rows = [
        entry("Feature extractor", "frozen"),
        entry("Standard", "standard"),
        entry("Stochastic", "stochastic"),
        *(entry(f"Last {k}", "last_k", last_k=LastK.Options(k=k)) for k in (3, 2, 1)),
        entry("Random policy", "random_policy"),
        entry("L2-SP", "l2sp", decayed),
        entry("Progressive", "progressive"),
        replace(entry("SpotTune, tuned blocks only", "spottune", **shared), variant="all_tuned"),
        entry("SpotTune Global-k", "global_k"),
        entry("SpotTune", "spottune", **shared),
        entry("Rollback", "rollback"),
    ]
    if (
        base.model.backbone.endswith("resnet50") and base.model.weights == "imagenet"
    ):  # a file fits one architecture only
        deeper = replace(base, model=replace(base.model, backbone=base.model.backbone.removesuffix("50") + "101"))
        rows.insert(7, entry("ResNet-101", "standard", deeper))
    return rows


def routes(base: RunConfig) -> list[Row]:
    """SpotTune's ways to route at test."""
    argmax = row(base, "Most probable block", "spottune", spottune=replace(base.options.spottune, eval_policy=ROUTES))
    names = {
        "sample": "Drawn",
        "majority": "Majority of the training images",
        "all_tuned": "All tuned",
        "all_frozen": "All frozen",
    }
    return [
        argmax,
        *(replace(argmax, name=name, against=argmax.name, variant=variant) for variant, name in names.items()),
    ]


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
}


def strategies(base: RunConfig) -> list[Row]:
    """Every strategy at its defaults under one protocol, AutoLR with L2-SP and layer pruning too."""
    return [
        row(base, name, strategy, against="" if name == "Standard" else "Standard")
        for name, strategy in COMPARED.items()
    ]


THREE_PERIODS = StrategyOptions(rollback=Rollback.Options(periods=3))
ZERO_SHOT = {
    "paper": Profile(
        "ResNet-50, 512 dimensions, proxy-anchor, 224 px, 40 epochs: for a GPU", BENCHES["cub_224"][1].base, (0, 1, 2)
    ),
    "cpu": Profile(
        "a small protocol for 2 CPU cores: EfficientNet-lite0, proxy-anchor, few classes, rollback in three periods",
        RunConfig(data=replace(PHOTOS, dataset="cub", classes=24), train=TrainConfig(epochs=3), options=THREE_PERIODS),
        (0,),
    ),
    "emoji": Profile(
        "drawings of emoji by seven vendors (pip brings images and weights): EfficientNet-lite0, proxy-anchor, rollback in three periods",
        RunConfig(
            data=replace(EMOJI, classes=100, stored=72, reader="cache"),
            train=TrainConfig(epochs=3),
            options=THREE_PERIODS,
        ),
        (0, 1, 2),
    ),
    "smoke": Profile(
        NOTHING, replace(BENCHES["synthetic"][1].base, model=ModelConfig(backbone="resnet26", weights="none")), (0, 1)
    ),
}

STUDIES = {
    "table_spottune": Study(
        "the SpotTune paper's table, quoted and measured; --dataset chooses one of its five sets",
        table,
        PROFILES,
        (NOTE,),
        QUOTED,
    ),
    "figure_routes": Study(
        "which blocks SpotTune tunes for which images, as a figure", routes, PROFILES, draw=draw_routes
    ),
    "table_strategies": Study("every strategy under one retrieval protocol", strategies, ZERO_SHOT),
}
