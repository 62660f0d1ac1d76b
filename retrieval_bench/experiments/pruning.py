"""Pruning from Scratch (Wang et al., AAAI 2020, arXiv 1909.12579) in retrieval: how small can the embedder get, how alike are structures?

The paper's tables could not be found, so nothing is quoted. Its setting, VGG-16 from random weights on CIFAR-10 (give ``--backbone
torchvision/resnet18`` for a ResNet), is the profile ``paper``; ``cub`` is ResNet-50 on CUB-200-2011, where pretrained weights matter.
"""

from __future__ import annotations

from dataclasses import replace

from retrieval_bench.config import RunConfig
from retrieval_bench.experiments import BENCHES, EMOJI
from retrieval_bench.experiments.study import NOTHING, Profile, Row, Study, row
from retrieval_bench.figures.pruning import draw_curve
from retrieval_bench.figures.structures import draw_similarity
from retrieval_bench.sections import DataConfig, LossConfig, ModelConfig, TrainConfig
from retrieval_bench.strategies.channel_gates import ChannelGates
from retrieval_bench.strategies.channel_pruning import ChannelPruning
from retrieval_bench.strategies.layer_pruning import LayerPruning
from retrieval_bench.strategies.network_slimming import NetworkSlimming

BUDGETS = (0.9, 0.7, 0.5, 0.3)
DROPPED = (1, 2, 4, 6)
PASSES = 6
"""Passes that gates are learned in."""
LENGTHS = (1, 4, 12)
"""Epochs before slimming; at 0 all scales are 1, so that only the rule for ties would be seen."""

GPU = BENCHES["cub_224"][1].base
SMALL = RunConfig(data=replace(EMOJI, classes=100, stored=72, reader="cache"), train=TrainConfig(epochs=3))
SMOKE = replace(
    BENCHES["synthetic"][1].base,
    model=ModelConfig(backbone="resnet26", weights="none"),
    train=TrainConfig(epochs=1, batch_size=16),
)


CIFAR = RunConfig(
    data=DataConfig(dataset="cifar10", split="closed_set", image_size=32, resize=32, reader="cache"),
    model=ModelConfig(backbone="torchvision/vgg16_bn", weights="none"),
    loss=LossConfig(loss="softmax", loss_lr=0.1, loss_weight_decay=1e-4),
    train=TrainConfig(
        epochs=160,
        batch_size=128,
        optimizer="sgd",
        lr=0.1,
        weight_decay=1e-4,
        schedule="step",
        decay_at=0.5,
        second_decay_at=0.75,
        decay_factor=0.1,
        freeze_bn=False,
    ),
)
"""The paper's schedule on CIFAR-10 (its public code). Random crops of all scales stand in for its padding by four pixels."""


def _sizes(change: TrainConfig | None = None) -> dict[str, Profile]:
    def sized(base: RunConfig) -> RunConfig:
        return (
            base
            if change is None
            else replace(base, train=replace(base.train, epochs=change.epochs, freeze_bn=change.freeze_bn))
        )

    return {
        "paper": Profile("VGG-16 on CIFAR-10 from random weights, 160 epochs: for a GPU", sized(CIFAR), (0, 1, 2)),
        "cub": Profile("ResNet-50 on CUB-200-2011, proxy-anchor, 224 px: for a GPU", sized(GPU), (0, 1, 2)),
        "cpu": Profile(
            "emoji, EfficientNet-lite0, proxy-anchor, few classes: for 2 CPU cores", sized(SMALL), (0, 1, 2)
        ),
        "smoke": Profile(NOTHING, sized(SMOKE), (0, 1)),
    }


def curve(base: RunConfig) -> list[Row]:
    """The whole network, then channels by three ways to choose them and blocks from the top, each at several sizes.

    Where a network starts from random weights, gates are the paper's (r = 0.2), and what is pruned gets more epochs (Scratch-B).
    """
    whole = "Whole network"
    rows = [row(base, whole, "standard")]
    scratch = base.model.weights == "none" and not base.train.freeze_bn
    regime = {"regime": "from_scratch", "sparsity": 0.2} if scratch else {}
    for budget in BUDGETS:
        gates = ChannelGates.Options(budget=budget, search_epochs=PASSES, held_out=0.2, **regime)
        longer = replace(base, train=replace(base.train, epochs=int(base.train.epochs / budget))) if scratch else base
        pruned = {
            "Gates": ("channel_gates", {"channel_gates": gates}),
            "Magnitude": ("channel_pruning", {"channel_pruning": ChannelPruning.Options(budget=budget)}),
            "Uniform": (
                "channel_pruning",
                {"channel_pruning": ChannelPruning.Options(budget=budget, scores="uniform")},
            ),
        }
        rows += [
            row(longer, f"{name} {budget}", strategy, against=whole, **options)
            for name, (strategy, options) in pruned.items()
        ]
    dropped = [
        row(
            base,
            f"Blocks -{count}",
            "layer_pruning",
            against=whole,
            layer_pruning=LayerPruning.Options(f"last:{count}"),
        )
        for count in DROPPED
    ]
    return rows + dropped


def similarity(base: RunConfig) -> list[Row]:
    """Structures at half the cost, without training afterwards: slimming after several lengths of training from random weights, gates on
    random weights, gates on the weights as they are."""
    random = replace(base, model=replace(base.model, weights="none"))
    slimmed = [
        row(
            random,
            f"Slimming after {length} epochs",
            "network_slimming",
            network_slimming=NetworkSlimming.Options(sparse_epochs=length),
        )
        for length in LENGTHS
    ]
    scratch = ChannelGates.Options(regime="from_scratch", search_epochs=PASSES)
    return [
        *slimmed,
        row(random, "Gates on random weights", "channel_gates", channel_gates=scratch),
        row(
            base,
            "Gates on pretrained weights",
            "channel_gates",
            channel_gates=ChannelGates.Options(search_epochs=PASSES),
        ),
    ]


CORRELATIONS = "Structures are the shares of channels kept per layer at half the multiply-accumulates; nothing is trained after pruning."
STUDIES = {
    "curve_pruning": Study(
        "Recall@1 against size: channels chosen by gates, magnitude and evenly, and whole blocks",
        curve,
        _sizes(),
        draw=draw_curve,
    ),
    "figure_structure_similarity": Study(
        "how alike pruned structures of several seeds and lengths of training are",
        similarity,
        _sizes(TrainConfig(epochs=0, freeze_bn=False)),
        (CORRELATIONS,),
        draw=draw_similarity,
    ),
}
