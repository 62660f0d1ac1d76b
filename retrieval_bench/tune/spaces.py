"""What is searched for a strategy or a chain, and configurations with values of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from retrieval_bench.config import RunConfig
from retrieval_bench.errors import UserError
from retrieval_bench.strategies import STRATEGIES, split_names
from retrieval_bench.strategies.base import Categorical, Range

Objective = Literal["recall_at_1", "map_at_r"]
"""What a search may maximise."""
RATE_SPAN = 10.0
"""The learning rate is searched from the configuration's own, divided by this, to that times this."""


def tidy(value: Any) -> Any:
    """A float with three significant digits, so that what was chosen can be typed; anything else as it is."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def space_of(config: RunConfig, blocks: int | None = None) -> dict[str, Range | Categorical]:
    """What is searched, by flag without its dashes: ``lr`` for everything that trains, and what the strategy's parts declare
    (``l2sp.alpha``). Empty for a frozen backbone without an embedding layer, which trains nothing.

    Numbers of blocks stay below `blocks`, those that the backbone has, so that no trial is lost on what it cannot do. The loss, its
    learning rate and the length of the training are the same for all strategies and are not searched.

    Raises:
        UserError: a value that `config` has, which is the first to be tried, lies outside.
    """
    names = split_names(config.strategy)
    if not all(STRATEGIES[name].trains_backbone for name in names) and not config.model.embedding_dim:
        return {}
    lr = config.train.lr
    space: dict[str, Range | Categorical] = {"lr": Range(tidy(lr / RATE_SPAN), tidy(lr * RATE_SPAN), log=True)} if lr else {}
    space |= {f"{name}.{option}": values for name in names for option, values in STRATEGIES[name].space.items()}
    space = space if blocks is None else {name: values.within(blocks) for name, values in space.items()}
    for name, value in values_of(config, space).items():
        if value not in space[name]:
            raise UserError(
                f"--{name.replace('_', '-')} {value} is not among the values that are searched ({space[name]})"
            )
    return space


def values_of(config: RunConfig, names: Mapping[str, Any]) -> dict[str, Any]:
    """The values that `config` has."""
    found = {}
    for name in names:
        strategy, _, option = name.rpartition(".")
        found[name] = getattr(getattr(config.options, strategy) if strategy else config.train, option)
    return found


def with_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """`config` with the values of a trial."""
    for name, value in values.items():
        strategy, _, option = name.rpartition(".")
        if strategy:
            part = replace(getattr(config.options, strategy), **{option: value})
            config = replace(config, options=replace(config.options, **{strategy: part}))
        else:
            config = replace(config, train=replace(config.train, **{option: value}))
    return config


def shown(values: Mapping[str, Any]) -> str:
    """Values for a table: ``lr 0.0003, l2sp.alpha 0.1``."""
    return (
        ", ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
        )
        or "-"
    )
