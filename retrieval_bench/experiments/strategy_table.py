"""All strategies of the registry under one retrieval protocol, and what they cost on another data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from retrieval_bench.config import RunConfig, unflatten
from retrieval_bench.experiments.benchmarks import CUB_112, CUB_224, EMOJI, PHOTOS, SYNTHETIC
from retrieval_bench.experiments.experiment import DRAWN, Experiment, Profile, Row, named_rows
from retrieval_bench.experiments.pruning import INHERITED_GATES
from retrieval_bench.figures.elsewhere import home_and_elsewhere
from retrieval_bench.strategies import STRATEGIES

LEFT_OUT = ("weight_variation",)
"""Trains as ``standard`` does."""
COMPARED = tuple(name for name in STRATEGIES if name not in LEFT_OUT)
CHAINS = ("layer_pruning+autolr", "l2sp+autolr", "layer_pruning+l2sp")
_NORMS = {"train.freeze_bn": False}
OWN: Mapping[str, Mapping[str, Any]] = {
    "bitfit": {**_NORMS, "train.lr": 1e-3},
    "norm_tuning": {**_NORMS, "train.lr": 1e-3},
    "network_slimming": _NORMS,
}
"""Choices of single strategies where the shared ones do not suit: those that train or prune by norms need norms that
train, and the few parameters of the first two a higher rate."""
_KEPT = {"statistics": "matched", "norm": "last"}
CHANNELS: Mapping[str, Mapping[str, Any]] = {
    "channel_gates": {**_KEPT, **INHERITED_GATES},
    "channel_pruning": {**_KEPT, "scores": "activation"},
}
"""Their options are those of the pruning curve: what prunes pretrained networks best there, not the defaults."""
_SGD = {"train.optimizer": "sgd", "train.lr": 0.01, "loss.loss_lr": 1.0}
"""AutoLR's variations are proportional to the rate under SGD, and not under AdamW. Of 0.01, 0.03 and 0.1 the first is
best for `standard` on the validation classes of emoji (R@1 83.9, 76.6, 24.1; one seed, lower rates not tried, loss rate
0.01). At a loss rate of 1 proxies move about as far as under AdamW at 0.01; that was not searched."""
_SLOW = {**_SGD, "train.lr": 0.001}
"""AutoLR's paper starts from 0.001: at 0.01 there is no room to raise rates."""
_RISE = {"options.autolr.rise": 3.0}


def strategies(base: RunConfig) -> list[Row]:
    """Every strategy under one protocol, at its defaults but for pruned channels; some chains; and AutoLR with a bound
    on its rates, and under the optimiser that it is derived for. Strategies that the backbone cannot do are left out
    with a line."""
    changes = {name: {"strategy": name, **OWN.get(name, {})} for name in (*COMPARED, *CHAINS)}
    for name, options in CHANNELS.items():
        changes[name] |= {f"options.{name}.{option}": value for option, value in options.items()}
    for name in ("bitfit", "norm_tuning"):
        changes[f"{name}, statistics kept"] = {**changes[name], "train.keep_statistics": True}
    changes["autolr, rates scaled to three times"] = {"strategy": "autolr", **_RISE}
    sgd = {f"{name}, SGD": {"strategy": name, **_SGD} for name in ("standard", "autolr", "layer_pruning+autolr")}
    sgd["autolr, SGD, rates scaled to three times"] = {"strategy": "autolr", **_SGD, **_RISE}
    slow = {f"{name}, SGD at 0.001": {"strategy": name, **_SLOW} for name in ("standard", "autolr")}
    rows = named_rows(base, changes, "standard") + named_rows(base, sgd, "standard, SGD")
    rows += named_rows(base, slow, "standard, SGD at 0.001")
    return [replace(row, optional=True) for row in rows]


_SIX_PASSES = {"options.channel_gates.search_epochs": 6}
_THREE_PERIODS = {"options.rollback.periods": 3, "train.epochs": 3}
_FEW_CUB = {**_THREE_PERIODS, **_SIX_PASSES, "data.dataset": "cub", "data.classes": 24}
_FEW_EMOJI = {**_THREE_PERIODS, "data.classes": 100, "data.stored": 72, "data.reader": "cache"}
FEW_EMOJI = unflatten(_FEW_EMOJI, RunConfig(data=EMOJI))
ABOUT_EMOJI = (
    "drawings of emoji by seven vendors (pip brings images and weights): EfficientNet-lite0, proxy-anchor, rollback in "
    "three periods"
)
PROFILES = {
    "paper": Profile(
        "ResNet-50, 512 dimensions, proxy-anchor, 224 px, 40 epochs: for a GPU", unflatten(_SIX_PASSES, CUB_224)
    ),
    "cpu": Profile(
        "a small protocol for 2 CPU cores: EfficientNet-lite0, proxy-anchor, few classes, rollback in three periods",
        unflatten(_FEW_CUB, RunConfig(data=PHOTOS)),
        (0,),
    ),
    "cpu_full": Profile(
        "all of CUB-200-2011 for 2 CPU cores: EfficientNet-lite0, proxy-anchor",
        CUB_112,
    ),
    "emoji": Profile(ABOUT_EMOJI, unflatten({**_SIX_PASSES, "evaluation.also_test": ("cub:1000",)}, FEW_EMOJI)),
    "smoke": Profile(DRAWN, unflatten(_SIX_PASSES, SYNTHETIC.changed(model__backbone="resnet26")), (0, 1)),
}
EXPERIMENTS = {
    "table_strategies": Experiment(
        "every strategy under one retrieval protocol, and what it costs on another data set",
        PROFILES,
        strategies,
        figure=home_and_elsewhere,
    ),
}
