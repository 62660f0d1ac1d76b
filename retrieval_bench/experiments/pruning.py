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
from retrieval_bench.experiments.benchmarks import CUB_112, CUB_224, EMOJI, SYNTHETIC
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
76.6; gamma 50 gave 98.5, 3 more of 137 images, on that one seed)."""
SCRATCH_GATES = {"held_out": 0.2, "regime": "from_scratch", "sparsity": 0.2}
LENGTHS = {0: (1, 4, 12), 30: (0, 1, 4, 8, 15, 30), 160: tuple(range(0, 161, 10))}
"""Epochs before slimming, by those that the schedule of its training takes (0: the full rate)."""

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
        CUB_112,
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
    for name, epochs in {"Blocks": {}, **({} if is_scratch else {"Blocks longer": longer})}.items():
        for count in DROPPED:
            dropped = {"strategy": "layer_pruning", "options.layer_pruning.drop": f"last:{count}"}
            changes[f"{name} -{count}"] = {**dropped, **epochs}
    return named_rows(base, changes, "Whole network")


def similarity(base: RunConfig) -> list[Row]:
    """Structures at half the cost, without training afterwards: slimming after several lengths of training from random
    weights, gates on random weights, gates on the weights as they are, or with a schedule on weights trained over it.

    Before the first step all scales are 1, so that only the rule for ties would be seen: their order is drawn.
    """
    random, schedule = {"model.weights": "none"}, base.options.network_slimming.schedule_epochs
    changes: dict[str, dict[str, Any]] = {}
    for length in LENGTHS[schedule]:
        epochs = {"strategy": "network_slimming", "options.network_slimming.sparse_epochs": length}
        drawn = {"strategy": "channel_pruning", "options.channel_pruning.scores": "random"}
        name = f"Slimming after {length} epochs" if length else "Scales drawn at random"
        changes[name] = {**random, **(epochs if length else drawn)}
    gates = {"strategy": "channel_gates"}
    drawn = {**gates, **random, "options.channel_gates.regime": "from_scratch"}
    if schedule:
        changes["Gates on random weights"] = {**drawn, "options.channel_gates.search": "public"}
        trained = {**random, "options.channel_gates.trained_epochs": schedule}
        changes[f"Gates on weights of {schedule} epochs"] = {**gates, **trained}
    else:
        changes |= {"Gates on random weights": drawn, "Gates on pretrained weights": gates}
    return named_rows(base, changes)


def cifar(base: RunConfig) -> list[Row]:
    """The whole network, and ways to find a network with half of its multiply-accumulates, all from random weights.
    Scratch-B but for the first row of gates, with about as many epochs as the whole network has in its second row.
    """
    gates = {"strategy": "channel_gates", "options.channel_gates.search": "public"}
    scratch, lottery = ({**gates, "options.channel_gates.regime": regime} for regime in ("from_scratch", "lottery"))
    channels, longer = {"strategy": "channel_pruning"}, {f"options.{name}.training": "scratch_b" for name in PRUNING}
    trained = {f"options.network_slimming.{name}_epochs": base.train.epochs for name in ("sparse", "schedule")}
    changes: dict[str, dict[str, Any]] = {
        "Whole network": {"strategy": "standard"},
        "Whole network, twice as long": {"strategy": "standard", "train.epochs": 2 * base.train.epochs},
        "Gates, other weights, Scratch-E": scratch,
        "Gates, other weights": {**scratch, **longer},
        "Gates, own first weights (lottery)": {**lottery, **longer},
        "SNIP": {**channels, **longer, "options.channel_pruning.scores": "snip"},
        "Uniform": {**channels, **longer, "options.channel_pruning.scores": "uniform"},
        f"Slimming after {base.train.epochs} epochs": {"strategy": "network_slimming", **trained, **longer},
    }
    return named_rows(base, changes, "Whole network")


def _searched(base: RunConfig, passes: int, schedule: int = 0) -> RunConfig:
    """As the paper's public code: gates with Adam and r = 0.2, slimming with SGD, both of the optimisers' own rates."""
    gates = {"search": "adam", "sparsity": 0.2, "search_epochs": passes}
    slimming = {"search": "sgd", "schedule_epochs": schedule}
    chosen = {"channel_gates": gates, "network_slimming": slimming}
    return unflatten(
        {f"options.{name}.{key}": value for name, part in chosen.items() for key, value in part.items()}, base
    )


PRUNING = ("channel_gates", "channel_pruning", "network_slimming")
_RESNET = CIFAR.changed(model__backbone="cifar_resnet20")
_FEWER = _RESNET.changed(data__crop_scale=0.6)
SIMILARITY = {
    **UNTRAINED,
    "paper": replace(
        UNTRAINED["paper"],
        about="VGG-16 on CIFAR-10 from random weights, slimming after 0 to 160 epochs of one schedule: for a GPU",
        base=unflatten({f"options.{name}.ends": True for name in PRUNING}, _searched(UNTRAINED["paper"].base, 10, 160)),
    ),
    "cifar": Profile(
        "ResNet-20 on 10,000 images of CIFAR-10 from random weights, SGD at 0.1, a tenth from epochs 15 and 23 on, "
        "slimming after 0 to 30 epochs: for 2 CPU cores",
        _searched(_FEWER.changed(data__train_per_class=1000, train__epochs=0), 10, 30),
    ),
}
CIFAR_PROFILES = {
    "paper": Profile("ResNet-20 on CIFAR-10 from random weights, 160 epochs: for a GPU", _searched(_RESNET, 10)),
    "cpu": Profile(
        "ResNet-20 on 4,000 images of CIFAR-10 from random weights, SGD at 0.05: for 2 CPU cores",
        _searched(_FEWER.changed(data__train_per_class=400, train__epochs=8, train__batch_size=64, train__lr=0.05), 5),
    ),
    "smoke": Profile(DRAWN, _searched(_SMOKE.changed(train__freeze_bn=False), 1), (0, 1)),
}
CORRELATIONS = (
    "Structures are the shares of channels kept per layer at half the multiply-accumulates; nothing is trained after "
    "pruning."
)
SCRATCH = (
    "Every pruned row but one is Scratch-B: trained for as many epochs as cost what those of the whole network do. "
    "Images in search: passed through the network before channels are removed; slimming trains the whole network in "
    "that time."
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
        SIMILARITY,
        similarity,
        (CORRELATIONS,),
        figure=structure_similarity,
    ),
    "table_cifar": Experiment(
        "ways to find a network of half the cost, from random weights: accuracy and what the search costs",
        CIFAR_PROFILES,
        cifar,
        (SCRATCH,),
    ),
}
