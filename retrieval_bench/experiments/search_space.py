"""What a search may change in a configuration, and the values of a trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retrieval_bench.config import RunConfig, flat_values, unflatten
from retrieval_bench.errors import UserError
from retrieval_bench.strategies import STRATEGIES, split_names
from retrieval_bench.strategies.base import Categorical, Range

RATE_SPAN = 10.0
"""The learning rate is searched from the configuration's own, divided by this, to that times this."""


def search_space(config: RunConfig, blocks: int | None = None) -> dict[str, Range | Categorical]:
    """What is searched, by flag without its dashes: ``lr`` for everything that trains, and what the strategy's parts
    declare (``l2sp.alpha``). Empty for a frozen backbone without an embedding layer, which trains nothing.

    Numbers of blocks stay below `blocks`, those that the backbone has, so that no trial is lost on what it cannot do.
    The loss, its learning rate and the length of the training are the same for all strategies and are not searched.

    Raises:
        UserError: a value that `config` has, which is the first to be tried, lies outside.
    """
    names = split_names(config.strategy)
    if not all(STRATEGIES[name].trains_backbone for name in names) and not config.model.embedding_dim:
        return {}
    lr = config.train.lr
    space: dict[str, Range | Categorical] = {}
    if lr:
        space["lr"] = Range(rounded(lr / RATE_SPAN), rounded(lr * RATE_SPAN), log=True)
    space |= {f"{name}.{option}": values for name in names for option, values in STRATEGIES[name].space.items()}
    space = space if blocks is None else {name: values.within(blocks) for name, values in space.items()}
    for name, value in values_of(config, space).items():
        if value not in space[name]:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} {value} is not among the values that are searched ({space[name]})")
    return space


def rounded(value: Any) -> Any:
    """A float with three significant digits, so that what was chosen can be typed; anything else as it is."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def dotted(name: str) -> str:
    """The dotted name in a configuration of what is searched."""
    return f"options.{name}" if "." in name else f"train.{name}"


def values_of(config: RunConfig, names: Mapping[str, Any]) -> dict[str, Any]:
    """The values that `config` has."""
    values = dict(flat_values(config))
    return {name: values[dotted(name)] for name in names}


def with_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """`config` with the values of a trial."""
    return unflatten({dotted(name): value for name, value in values.items()}, config)


def values_text(values: Mapping[str, Any]) -> str:
    """Values for a table: ``lr 0.0003, l2sp.alpha 0.1``."""
    texts = [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()]
    return ", ".join(texts) or "-"
