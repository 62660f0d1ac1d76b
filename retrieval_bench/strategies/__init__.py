"""The fine-tuning strategies by name. To add one, write its file and its line here; flags, tables, tests follow."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import field, fields, make_dataclass
from typing import Any

from retrieval_bench import plugins
from retrieval_bench.errors import UserError, unknown
from retrieval_bench.strategies.autolr import AutoLR
from retrieval_bench.strategies.base import Strategy, check_options
from retrieval_bench.strategies.bitfit import BitFit
from retrieval_bench.strategies.chain import Chain, refuse_clashes
from retrieval_bench.strategies.channel_gates import ChannelGates
from retrieval_bench.strategies.channel_pruning import ChannelPruning
from retrieval_bench.strategies.ema import EMA
from retrieval_bench.strategies.frozen import Frozen
from retrieval_bench.strategies.global_k import GlobalK
from retrieval_bench.strategies.gradual_unfreezing import GradualUnfreezing
from retrieval_bench.strategies.l2sp import L2SP
from retrieval_bench.strategies.last_k import LastK
from retrieval_bench.strategies.layer_pruning import LayerPruning
from retrieval_bench.strategies.layerwise_decay import LayerwiseDecay
from retrieval_bench.strategies.lora import LoRA
from retrieval_bench.strategies.low_high import LowHigh
from retrieval_bench.strategies.lp_ft import LPFT
from retrieval_bench.strategies.network_slimming import NetworkSlimming
from retrieval_bench.strategies.norm_tuning import NormTuning
from retrieval_bench.strategies.progressive import Progressive
from retrieval_bench.strategies.random_policy import RandomPolicy
from retrieval_bench.strategies.rollback import Rollback
from retrieval_bench.strategies.spottune import SpotTune
from retrieval_bench.strategies.standard import Standard
from retrieval_bench.strategies.stochastic import Stochastic
from retrieval_bench.strategies.surgical import Surgical
from retrieval_bench.strategies.visual_prompts import VisualPrompts
from retrieval_bench.strategies.weight_variation import WeightVariation
from retrieval_bench.strategies.wise_ft import WiseFT

STRATEGIES: dict[str, type[Strategy]] = {
    "autolr": AutoLR,
    "bitfit": BitFit,
    "channel_gates": ChannelGates,
    "channel_pruning": ChannelPruning,
    "ema": EMA,
    "frozen": Frozen,
    "global_k": GlobalK,
    "gradual_unfreezing": GradualUnfreezing,
    "l2sp": L2SP,
    "last_k": LastK,
    "layer_pruning": LayerPruning,
    "layerwise_decay": LayerwiseDecay,
    "lora": LoRA,
    "low_high": LowHigh,
    "lp_ft": LPFT,
    "network_slimming": NetworkSlimming,
    "norm_tuning": NormTuning,
    "progressive": Progressive,
    "random_policy": RandomPolicy,
    "rollback": Rollback,
    "spottune": SpotTune,
    "standard": Standard,
    "stochastic": Stochastic,
    "surgical": Surgical,
    "visual_prompts": VisualPrompts,
    "weight_variation": WeightVariation,
    "wise_ft": WiseFT,
}

BUILT_IN = frozenset(STRATEGIES)
REMADE = ("__init__", "__eq__", "__hash__", "__repr__", "__dataclass_fields__", "__annotations__")


def _options_class() -> type[Any]:
    options = [(name, kind.Options, field(default=kind.Options())) for name, kind in STRATEGIES.items()]
    return make_dataclass("StrategyOptions", options, frozen=True)


StrategyOptions = _options_class()
"""The options of every strategy, one field per name in :data:`STRATEGIES` (flags ``--last-k.k`` and so on)."""


def split_names(strategy: str) -> list[str]:
    """The names in a strategy such as ``layer_pruning+autolr``; raises :class:`UserError` for what does not chain."""
    names = [_name(word) for word in split_words(strategy)]
    if len(set(names)) < len(names):
        raise UserError(f"strategy '{strategy}' names one strategy twice")
    refuse_clashes({name: STRATEGIES[name] for name in names})
    return names


def split_words(strategy: str) -> list[str]:
    """The parts of a strategy as they were given: names, or ``package.module:Class``."""
    return [word.strip() for word in strategy.split("+")]


def _name(word: str) -> str:
    """The name of one strategy; one of the user's own joins the registry when it is first named."""
    if word in BUILT_IN:
        return word
    plugin = plugins.load("strategies", word)
    if plugin is None:
        raise unknown("strategy", word, [*BUILT_IN, *plugins.entry_points("strategies")])
    name, kind = plugin.name, plugin.target
    if STRATEGIES.get(name) is not kind:
        _check_own(word, name, kind)
        STRATEGIES[name] = kind
        made = _options_class()  # the class itself stays, with one more field: instances have it at its default
        for attribute in (*REMADE, name):
            setattr(StrategyOptions, attribute, getattr(made, attribute))
    return name


def _check_own(word: str, name: str, kind: Any) -> None:
    """Raises :class:`UserError` for a class that is no complete strategy of a name of its own."""
    problem = ""
    if not (inspect.isclass(kind) and issubclass(kind, Strategy)):
        problem = "is no subclass of retrieval_bench.strategies.Strategy"
    elif inspect.isabstract(kind):
        problem = f"lacks the methods {', '.join(sorted(vars(kind)['__abstractmethods__']))}"
    elif name in STRATEGIES and _path(kind) != _path(STRATEGIES[name]):  # a module that is loaded again has new classes
        problem = f"its name, {name}, is that of another strategy: rename the class"
    elif "Options" in vars(kind) and "__dataclass_params__" not in vars(kind.Options):
        problem = "its Options must be a @dataclass(frozen=True) that extends Strategy.Options"
    elif others := [part.name for part in fields(kind.Options) if "search" not in part.metadata]:
        problem = f"declare {', '.join(others)} by option(default, help)"
    else:
        try:
            kind(kind.Options())
        except Exception as error:
            problem = f"cannot be made from its Options: {plugins.place_of(error)}"
    if problem:
        raise UserError(f"--strategy {word}: {problem}")


def _path(kind: type) -> tuple[str, str]:
    return kind.__module__, kind.__qualname__


def load_own(strategies: str) -> None:
    """Registers those of the strategies (separated by ``+`` or commas) that are the user's own."""
    for word in map(str.strip, strategies.replace("+", ",").split(",")):
        if ":" in word or word in plugins.entry_points("strategies"):
            _name(word)


def load_from_words(words: Sequence[str]) -> None:
    """The same for those in words of the command line, so that their options are flags."""
    flag = ""
    for word in words:
        if word.startswith("--"):
            flag, _, word = word.partition("=")
        if flag in ("--strategy", "--strategies"):
            load_own(word)


def validate_options(strategy: str, options: Any, epochs: int) -> None:
    """Raises :class:`UserError` for the first option of a part of `strategy` that cannot work in so many epochs."""
    for name in split_names(strategy):
        part = getattr(options, name)
        check_options(name, part)
        if epochs < part.epochs_needed:
            raise UserError(f"--epochs {epochs}: {name} needs at least {part.epochs_needed} with its options")


def refuse_unused_options(strategies: Iterable[str], options: Any, default: Any = None) -> None:
    """Raises :class:`UserError` if an option was set for a strategy that is part of none of `strategies`.

    `default` are options that nobody set, such as a profile's; without, the defaults.
    """
    chosen, default = list(strategies), default or StrategyOptions()
    names = {name for strategy in chosen for name in split_names(strategy)}
    for name in STRATEGIES:
        if name not in names and getattr(options, name) != getattr(default, name):
            flag = f"--{name}".replace("_", "-")
            raise UserError(f"{flag} options are set but the strategy is {', '.join(chosen)}")


def only_used(strategy: str, options: Any) -> Any:
    """`options` with those of strategies that take no part in `strategy` back at their defaults."""
    return StrategyOptions(**{name: getattr(options, name) for name in split_names(strategy)})


def build_strategy(strategy: str, options: Any) -> Chain:
    """A fresh strategy for one run, from its name and the :data:`StrategyOptions` of the configuration."""
    return Chain({name: STRATEGIES[name](getattr(options, name)) for name in split_names(strategy)})


def label(strategy: str, options: Any) -> str:
    """The strategy as tables show it: ``last_k(k=3)``, with the options that differ from their defaults."""
    labels = []
    for name in split_names(strategy):
        values = {part: getattr(getattr(options, name), part.name) for part in fields(getattr(options, name))}
        shown = [
            f"{part.name}={value}" for part, value in values.items() if part.metadata["shown"] or value != part.default
        ]
        labels.append(f"{name}({', '.join(shown)})" if shown else name)
    return "+".join(labels)
