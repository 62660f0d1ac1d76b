"""Pruning from Scratch (Wang et al., AAAI 2020, arXiv 1909.12579) in retrieval: how small can the embedder get, how
alike are structures?

The paper's tables could not be found, so nothing is reported. Its setting, VGG-16 from random weights on CIFAR-10 (give
``--backbone cifar_resnet56`` for a ResNet), is the profile ``paper``; ``cub`` is ResNet-50 on CUB-200-2011, where
pretrained weights matter.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from retrieval_bench.config import RunConfig, unflatten
from retrieval_bench.experiments.benchmarks import BENCHMARKS, CUB_224, EMOJI, SYNTHETIC
from retrieval_bench.experiments.experiment import DRAWN, Experiment, Profile, Row, named_rows
from retrieval_bench.figures.pruning import pruning_curve, structure_similarity
from retrieval_bench.sections import DataConfig, LossConfig, ModelConfig, TrainConfig

BUDGETS = (0.9, 0.7, 0.5, 0.3)
DROPPED = (1, 2, 4, 6)
SCORES = {
    "Activation": "activation",
    "SNIP": "snip",
    "Magnitude": "magnitude",
    "Uniform": "uniform",
    "Random": "random",
}
INHERITED_GATES = {"search": "adam", "gamma": 5.0, "gate_lr": 0.03}
"""Chosen on the validation classes of emoji (R@1 at half the cost, seed 0: 96.4; with gamma 0.5 and a rate of 0.01,
of which the mean gate hardly moves, 76.6)."""
SCRATCH_GATES = {"held_out": 0.2, "regime": "from_scratch", "sparsity": 0.2}
PASSES = {"options.channel_gates.search_epochs": 6}
"""Passes that gates are learned in."""
LENGTHS = (1, 4, 12)
"""Epochs before slimming; at 0 all scales are 1, so that only the rule for ties would be seen."""

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
"""The paper's schedule on CIFAR-10 (its public code). Random crops of all scales stand in for its padding by four
pixels."""
_SEARCH = "options.channel_gates.search_epochs"
_EMOJI = {"data.classes": 100, "data.stored": 72, "data.reader": "cache", "train.epochs": 3, _SEARCH: 6}
_SMOKE = RunConfig(
    data=SYNTHETIC.data,
    model=replace(SYNTHETIC.model, backbone="resnet26"),
    train=TrainConfig(epochs=1, batch_size=16),
).changed(options__channel_gates__search_epochs=2)
PROFILES = {
    "paper": Profile("VGG-16 on CIFAR-10 from random weights, 160 epochs: for a GPU", unflatten({_SEARCH: 10}, CIFAR)),
    "cub": Profile("ResNet-50 on CUB-200-2011, proxy-anchor, 224 px: for a GPU", unflatten({_SEARCH: 6}, CUB_224)),
    "cpu": Profile(
        "emoji, EfficientNet-lite0, proxy-anchor, few classes: for 2 CPU cores",
        unflatten(_EMOJI, RunConfig(data=EMOJI)),
    ),
    "cub_cpu": Profile(
        "CUB-200-2011, EfficientNet-lite0, proxy-anchor, 112 px: for 2 CPU cores",
        BENCHMARKS["cub"].profiles["cpu"].base,
    ),
    "smoke": Profile(DRAWN, _SMOKE, (0, 1)),
}
UNTRAINED = {
    name: replace(profile, base=profile.base.changed(train__epochs=0, train__freeze_bn=False))
    for name, profile in PROFILES.items()
}


def curve(base: RunConfig) -> list[Row]:
    """The whole network, then channels by six ways to choose them and blocks from the top, each at several sizes.

    Pretrained networks keep their statistics after a cut (``statistics matched``), and gates act on the last norm of a
    width. Their search trains the loss's proxies too, so that ``longer`` rows train for as many epochs as gates search
    and train. Where a network starts from random weights, gates are the paper's (r = 0.2), and what is pruned gets more
    epochs (Scratch-B).
    """
    is_scratch = base.model.weights == "none" and not base.train.freeze_bn
    shared = {} if is_scratch else {"statistics": "matched", "norm": "last"}
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "Gates": ("channel_gates", SCRATCH_GATES if is_scratch else INHERITED_GATES),
        **{name: ("channel_pruning", {"scores": scores}) for name, scores in SCORES.items()},
    }
    changes: dict[str, dict[str, Any]] = {"Whole network": {"strategy": "standard"}}
    longer = {"train.epochs": base.train.epochs + base.options.channel_gates.search_epochs}
    if not is_scratch:
        ways["Activation longer"] = ways["Activation"]
        changes["Whole network longer"] = {"strategy": "standard", **longer}
    for budget in BUDGETS:
        scratch_b = {"train.epochs": int(base.train.epochs / budget)} if is_scratch else {}
        for name, (strategy, options) in ways.items():
            chosen = {"budget": budget, **shared, **options}
            settings = {f"options.{strategy}.{option}": value for option, value in chosen.items()}
            epochs = longer if name.endswith("longer") else scratch_b
            changes[f"{name} {budget}"] = {"strategy": strategy, **settings, **epochs}
    for count in DROPPED:
        changes[f"Blocks -{count}"] = {"strategy": "layer_pruning", "options.layer_pruning.drop": f"last:{count}"}
    return named_rows(base, changes, "Whole network")


def similarity(base: RunConfig) -> list[Row]:
    """Structures at half the cost, without training afterwards: slimming after several lengths of training from random
    weights, gates on random weights, gates on the weights as they are."""
    random = {"model.weights": "none"}
    changes: dict[str, dict[str, Any]] = {}
    for length in LENGTHS:
        epochs = {"options.network_slimming.sparse_epochs": length}
        changes[f"Slimming after {length} epochs"] = {"strategy": "network_slimming", **random, **epochs}
    gates = {"strategy": "channel_gates", **PASSES}
    changes["Gates on random weights"] = {**gates, **random, "options.channel_gates.regime": "from_scratch"}
    changes["Gates on pretrained weights"] = gates
    return named_rows(base, changes)


CORRELATIONS = (
    "Structures are the shares of channels kept per layer at half the multiply-accumulates; nothing is trained after "
    "pruning."
)
EXPERIMENTS = {
    "curve_pruning": Experiment(
        "Recall@1 against size: channels chosen in six ways, and whole blocks",
        PROFILES,
        curve,
        figure=pruning_curve,
    ),
    "figure_structure_similarity": Experiment(
        "how alike pruned structures of several seeds and lengths of training are",
        UNTRAINED,
        similarity,
        (CORRELATIONS,),
        figure=structure_similarity,
    ),
}
