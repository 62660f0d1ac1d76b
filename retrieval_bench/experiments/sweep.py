"""The command ``sweep``: a grid of which every flag of ``run`` may be an axis."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import tyro

from retrieval_bench.config import RunConfig, flag, flat_values
from retrieval_bench.errors import UserError
from retrieval_bench.experiments.commands import ManyRuns
from retrieval_bench.experiments.experiment import Profile, Row, grid_rows, runs_of
from retrieval_bench.experiments.plan import print_plan
from retrieval_bench.experiments.registry import EXPERIMENTS
from retrieval_bench.experiments.rehearsal import able_runs
from retrieval_bench.parsing import ask, choose

LISTS = ("options.layer_pruning.drop",)
"""Choices whose values have commas of their own; for several values the flag is given several times."""


@dataclass(frozen=True)
class Sweep(ManyRuns):
    """Make all runs of a grid: every flag of run takes several values, as in --seed 0,1,2.

    The grid of a benchmark (an unknown name lists them) may come first, and flags change it. Flags without a value,
    such as --no-flip, hold for all runs.
    """

    dry_run: bool = False
    """print the plan: the runs, which of them are recorded, and how long the rest will take"""
    axes: tyro.conf.Suppress[Mapping[str, tuple[Any, ...]]] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        return grid_rows(self.base, {name: values for name, values in self.axes.items() if name != "seed"})

    @property
    def configs(self) -> list[RunConfig]:
        return runs_of(self.rows, self.axes.get("seed", (self.base.seed,)))

    def execute(self) -> int:
        """1 if any run failed."""
        configs = self.configs
        if self.dry_run:
            print_plan(self.rows, configs, self.runtime, self.workers)
            return 0
        configs = able_runs(self.rows, configs, self.workers.settle(self.runtime))
        return self.make(configs, self.rows, {config.seed for config in configs}, self.show_leaderboard, isolate=True)


def sweep(words: Sequence[str]) -> Sweep:
    """The command from the name of a benchmark that has a grid, or none, and flags, of which those of ``run`` may have
    several values."""
    grids = {name: entry.profiles["grid"] for name, entry in EXPERIMENTS.items() if "grid" in entry.profiles}
    profile, rest = Profile("", RunConfig(), ()), list(words)
    if not words or not words[0].startswith("-"):
        about = {name: grid.about for name, grid in grids.items()}
        usage = "sweep [GRID] [--help] [flags of run, each with several values: --strategy frozen,last_k --seed 0,1]"
        profile = grids[choose(words, "grid", about, usage, "grids")]
        rest.pop(0)
    others, given = split_words(rest)
    single = [word for name, values in given.items() if len(values) == 1 for word in (flag(name), *values[0])]
    command = ask(Sweep, [*others, *single], "sweep", Sweep(profile.base), ("--resume",))
    axes = dict(profile.axes) | ({"seed": profile.seeds} if profile.seeds else {})
    axes = {name: values for name, values in axes.items() if name not in given}
    for name, values in given.items():
        if len(values) > 1:
            parsed = [ask(Sweep, [flag(name), *value], "sweep").base for value in values]
            axes[name] = tuple(dict(flat_values(config))[name] for config in parsed)
            for place, value in enumerate(axes[name]):
                if value in axes[name][:place]:
                    raise UserError(f"{flag(name)} {' '.join(values[place])} is given twice")
    return replace(command, axes=axes)


def split_words(words: Sequence[str]) -> tuple[list[str], dict[str, list[list[str]]]]:
    """Separates flags of ``run`` from other words.

    Args:
        words: of the command line. A flag takes several values, separated by commas or as words of their own; where one
            value is several words (``--loss-options margin 0.1,0.2``) commas separate, and they are combined. Of a flag
            that is given several times the last counts, but for those in :data:`LISTS`.

    Returns:
        The words that are no flags of ``run``, and for each choice, by its dotted name, its values as words.

    Raises:
        UserError: an empty value.
    """
    usual = dict(flat_values(RunConfig()))
    names = {flag(name): name for name in usual}
    groups: list[list[str]] = []
    for word in words:
        if re.match("--?[a-z]", word) or not groups:
            groups.append(word.split("=", 1))
        else:
            groups[-1].append(word)
    others: list[str] = []
    given: dict[str, list[list[str]]] = {}
    for word, *parts in groups:
        name = names.get(word.replace("_", "-"), "")
        if not name or not parts:
            others += [word, *parts]
            continue
        if name in LISTS:
            given[name] = [*given.get(name, []), *([part] for part in parts)]
        elif usual[name] is None or isinstance(usual[name], list):
            given[name] = [list(value) for value in itertools.product(*(part.split(",") for part in parts))]
        else:
            given[name] = [[value] for part in parts for value in part.split(",")]
        values = given[name]
        if len(parts) < len(values) and any("" in value for value in values):
            raise UserError(f"{word} {' '.join(parts)}: a value is missing beside a comma")
    return others, given
