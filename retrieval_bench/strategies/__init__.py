"""The fine-tuning strategies by name. To add one: write its file, then add its line here; flags, tables and tests follow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field, fields, make_dataclass
from typing import Any

from retrieval_bench.errors import UserError, unknown
from retrieval_bench.strategies.autolr import AutoLR
from retrieval_bench.strategies.base import Strategy, check_options
from retrieval_bench.strategies.chain import Chain, refuse_clashes
from retrieval_bench.strategies.channel_gates import ChannelGates
from retrieval_bench.strategies.channel_pruning import ChannelPruning
from retrieval_bench.strategies.frozen import Frozen
from retrieval_bench.strategies.global_k import GlobalK
from retrieval_bench.strategies.l2sp import L2SP
from retrieval_bench.strategies.last_k import LastK
from retrieval_bench.strategies.layer_pruning import LayerPruning
from retrieval_bench.strategies.layerwise_decay import LayerwiseDecay
from retrieval_bench.strategies.low_high import LowHigh
from retrieval_bench.strategies.network_slimming import NetworkSlimming
from retrieval_bench.strategies.progressive import Progressive
from retrieval_bench.strategies.random_policy import RandomPolicy
from retrieval_bench.strategies.rollback import Rollback
from retrieval_bench.strategies.spottune import SpotTune
from retrieval_bench.strategies.standard import Standard
from retrieval_bench.strategies.stochastic import Stochastic
from retrieval_bench.strategies.weight_variation import WeightVariation

STRATEGIES: dict[str, type[Strategy]] = {
    "autolr": AutoLR,
    "channel_gates": ChannelGates,
    "channel_pruning": ChannelPruning,
    "frozen": Frozen,
    "global_k": GlobalK,
    "l2sp": L2SP,
    "last_k": LastK,
    "layer_pruning": LayerPruning,
    "layerwise_decay": LayerwiseDecay,
    "low_high": LowHigh,
    "network_slimming": NetworkSlimming,
    "progressive": Progressive,
    "random_policy": RandomPolicy,
    "rollback": Rollback,
    "spottune": SpotTune,
    "standard": Standard,
    "stochastic": Stochastic,
    "weight_variation": WeightVariation,
}

StrategyOptions: type[Any] = make_dataclass(
    "StrategyOptions",
    [(name, kind.Options, field(default=kind.Options())) for name, kind in STRATEGIES.items()],
    frozen=True,
)
"""The options of every strategy, one field per name in :data:`STRATEGIES` (flags ``--last-k.k`` and so on)."""


def split_names(strategy: str) -> list[str]:
    """The names in a strategy such as ``layer_pruning+autolr``; raises :class:`UserError` for what cannot be chained."""
    names = [name.strip() for name in strategy.split("+")]
    for name in names:
        if name not in STRATEGIES:
            raise unknown("strategy", name, STRATEGIES)
    if len(set(names)) < len(names):
        raise UserError(f"strategy '{strategy}' names one strategy twice")
    refuse_clashes(names, [STRATEGIES[name] for name in names])
    return names


def refuse_unused_options(strategies: Iterable[str], options: Any, usual: Any = None) -> None:
    """Raises :class:`UserError` if an option was set for a strategy that is part of none of `strategies`.

    `usual` are options that nobody set, such as a profile's; without, the defaults.
    """
    chosen, usual = list(strategies), usual or type(options)()
    names = {name for strategy in chosen for name in split_names(strategy)}
    for unused in fields(options):
        if unused.name not in names and getattr(options, unused.name) != getattr(usual, unused.name):
            raise UserError(
                f"--{unused.name.replace('_', '-')} options are set but the strategy is {', '.join(chosen)}"
            )


def validate_options(strategy: str, options: Any) -> None:
    """Raises :class:`UserError` for the first option of a part of `strategy` that cannot work."""
    for name in split_names(strategy):
        check_options(name, getattr(options, name))


def only_used(strategy: str, options: Any) -> Any:
    """`options` with those of strategies that take no part in `strategy` back at their defaults."""
    names = split_names(strategy)
    return type(options)(**{name: getattr(options, name) for name in names})


def build_strategy(strategy: str, options: Any) -> Chain:
    """A fresh strategy for one run, from its name and the :data:`StrategyOptions` of the configuration."""
    return Chain({name: STRATEGIES[name](getattr(options, name)) for name in split_names(strategy)})


def label(strategy: str, options: Any) -> str:
    """The strategy as tables show it: ``last_k(k=3)``, with the options that differ from their defaults."""
    return "+".join(_label_of(name, getattr(options, name)) for name in split_names(strategy))


def _label_of(name: str, options: Any) -> str:
    shown = [
        (part.name, getattr(options, part.name))
        for part in fields(options)
        if part.metadata["shown"] or getattr(options, part.name) != part.default
    ]
    return f"{name}({', '.join(f'{key}={value}' for key, value in shown)})" if shown else name
