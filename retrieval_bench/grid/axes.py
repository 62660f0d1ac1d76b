"""A grid of runs: a base configuration and, for some of its choices, several values; and how the command line says so."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from retrieval_bench.config import RunConfig
from retrieval_bench.errors import UserError, unknown
from retrieval_bench.strategies import StrategyOptions, only_used, refuse_unused_options
from retrieval_bench.validation import validate

LISTS = ("layer-pruning.drop",)
"""Flags whose values have commas of their own; for several values the flag is given several times."""


@dataclass(frozen=True)
class Grid:
    """Every combination of the axes' values.

    Attributes:
        base: what all runs share.
        axes: values by flag of ``run``, without its dashes: ``{"strategy": ("autolr", "standard"), "seed": (0, 1, 2)}``.
    """

    base: RunConfig = field(default_factory=RunConfig)
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def runs(self) -> list[RunConfig]:
        """The runs, each once: seed by seed, so that an interrupted grid still compares, then in the order of the axes.

        Options of a strategy are left out of runs that do without it.

        Raises:
            UserError: the first run that cannot work, or options of a strategy that is part of none.
        """
        paths = run_flags()
        for flag in self.axes:
            if flag not in paths:
                raise unknown("flag of run", f"--{flag}", [f"--{known}" for known in paths])
        axes = sorted(self.axes.items(), key=lambda axis: axis[0] != "seed")
        strategies = self.axes.get("strategy", (self.base.strategy,))
        runs: dict[RunConfig, None] = {}
        for values in itertools.product(*(values for _, values in axes)):
            config = self.base
            for (flag, _), value in zip(axes, values, strict=True):
                config = _put(config, paths[flag], value)
            refuse_unused_options(strategies, config.options)
            config = replace(config, options=only_used(config.strategy, config.options))
            try:
                validate(config)
            except UserError as error:
                chosen = " ".join(f"--{flag} {value}" for (flag, _), value in zip(axes, values, strict=True))
                raise UserError(f"{error} (the run with {chosen})" if chosen else str(error)) from None
            runs[config] = None
        return list(runs)


def run_flags() -> dict[str, tuple[str, ...]]:
    """The path of each choice in a :class:`RunConfig`, by its flag of ``run``: ``{"loss-lr": ("loss", "loss_lr"), ...}``."""
    return dict(_paths(RunConfig(), (), ""))


def _paths(section: Any, path: tuple[str, ...], prefix: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for part in fields(section):
        value, here = getattr(section, part.name), (*path, part.name)
        if is_dataclass(value):
            yield from _paths(value, here, f"{part.name}." if isinstance(section, StrategyOptions) else prefix)
        else:
            yield f"{prefix}{part.name}".replace("_", "-"), here


def _get(section: Any, path: Sequence[str]) -> Any:
    for name in path:
        section = getattr(section, name)
    return section


def _put(section: Any, path: Sequence[str], value: Any) -> Any:
    name, *rest = path
    return replace(section, **{name: _put(getattr(section, name), rest, value) if rest else value})


def split_words(words: Sequence[str]) -> tuple[list[str], dict[str, list[list[str]]]]:
    """Tells flags of ``run`` from other words.

    Args:
        words: of the command line. A flag takes several values, separated by commas or as words of their own; where one value is several
            words (``--loss-options margin 0.1,0.2``) commas separate, and they are combined. Of a flag that is given several times the
            last counts, but for those in :data:`LISTS`.

    Returns:
        The words that are no flags of ``run``, and for each flag, without its dashes, its values as words.

    Raises:
        UserError: an empty value, or one that is given twice.
    """
    usual, known, others, given = RunConfig(), run_flags(), [], {}
    for words_of_flag in _by_flag(words):
        flag = words_of_flag[0].removeprefix("--").replace("_", "-")
        if flag not in known or len(words_of_flag) == 1:
            others += words_of_flag
            continue
        parts = [[word] if flag in LISTS else word.split(",") for word in words_of_flag[1:]]
        values = given[flag] = given.get(flag, []) if flag in LISTS else []
        one_word = not isinstance(_get(usual, known[flag]), tuple)
        for value in (
            [[part] for several in parts for part in several] if one_word else map(list, itertools.product(*parts))
        ):
            if "," in "".join(words_of_flag[1:]) and "" in value:
                raise UserError(f"{' '.join(words_of_flag)}: a value is missing beside a comma")
            if value in values:
                raise UserError(f"--{flag} {' '.join(value)} is given twice")
            values.append(value)
    return others, given


def _by_flag(words: Sequence[str]) -> Iterator[list[str]]:
    """Each flag with the words that follow it."""
    found: list[str] = []
    for word in words:
        if word.startswith("--"):
            if found:
                yield found
            flag, equals, value = word.partition("=")
            found = [flag, value] if equals else [word]
        else:
            found.append(word)
    if found:
        yield found


def read_axes(
    given: Mapping[str, list[list[str]]], parse: Callable[[list[str]], RunConfig]
) -> dict[str, tuple[Any, ...]]:
    """The values of flags that are given as words.

    Args:
        given: see :func:`split_words`.
        parse: a configuration from flags of ``run``.
    """
    paths = run_flags()
    return {
        flag: tuple([_get(parse([f"--{flag}", *value]), paths[flag]) for value in values])
        for flag, values in given.items()
    }
