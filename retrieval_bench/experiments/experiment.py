"""An experiment: named rows of configurations times seeds, perhaps with reported values and a figure.

Benchmarks, the tables of papers, grids, what a search chose and the Reality Check are all experiments: one loop makes
the runs, and one table shows means over seeds, intervals, reported values beside measured ones and differences.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from retrieval_bench.config import (
    CONTENT,
    RunConfig,
    RuntimeConfig,
    changed_flags,
    config_hash,
    flag,
    flatten,
    portable,
    unflatten,
    unnest,
)
from retrieval_bench.errors import UserError
from retrieval_bench.figures.style import Plot
from retrieval_bench.identity import run_ids
from retrieval_bench.models.build import full_name
from retrieval_bench.plugins import name_of
from retrieval_bench.records import Record
from retrieval_bench.reported import reported_values
from retrieval_bench.strategies import only_used, refuse_unused_options
from retrieval_bench.validation import validate

Records = dict[str, list[Record]]
"""The records of each row, by its name; seeds in order."""
Objective = Literal["recall_at_1", "map_at_r"]
"""What a search may maximise."""
DRAWN = "drawn patterns and an untrained network: shows that everything works, measures nothing"
"""About profiles on synthetic data."""
FILL_IN = ("--dataset", "--backbone", "--weights", "--mean", "--std")
"""Flags that fill a profile in, and do not make another one of it."""


@dataclass(frozen=True)
class Row:
    """One row of a table, run once per seed.

    Attributes:
        name: what the table calls it.
        config: the run, without its seed.
        reported: what a paper reports, fractions by the metric's name (``recall_at_1``).
        against: name of the row that it is compared with, seed by seed.
        eval_mode: the way to use the trained network whose metrics count (``Strategy.eval_modes``); the usual one if
            empty.
        more: metrics that the table shows beside Recall@K.
        columns: further columns, such as what a search chose.
        optional: left out, with a line, where the backbone cannot do it; not shown before it has run.
    """

    name: str
    config: RunConfig
    reported: Mapping[str, float] = field(default_factory=dict)
    against: str = ""
    eval_mode: str = ""
    more: tuple[str, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    optional: bool = False

    @property
    def metrics(self) -> list[str]:
        """The metrics that the table shows, the one that counts first."""
        first = ["accuracy"] if self.config.data.split == "closed_set" else []
        return [*first, *(f"recall_at_{k}" for k in self.config.ks), *self.more]

    def measured(self, record: Record) -> dict[str, Any]:
        """The metrics of a record that count for this row; what was not measured is missing."""
        return record.eval_modes.get(self.eval_mode, {}) if self.eval_mode else record.metrics


@dataclass(frozen=True)
class Profile:
    """A size of an experiment.

    Attributes:
        about: one line; says what is not as in the paper.
        base: the configuration that all rows share.
        seeds: one run per row and seed.
        axes: where the rows are a grid: several values of some choices, by their dotted names.
        trials: where options are searched first: for each strategy, and the budget of its search (images seen by so
            many plain runs).
        objective: what the search maximises on the validation classes.
        own: where options are searched first: choices of single strategies in place of the base's, by dotted names.
    """

    about: str
    base: RunConfig
    seeds: tuple[int, ...] = (0, 1, 2)
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    trials: int = 0
    objective: Objective = "recall_at_1"
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """What is compared.

    Attributes:
        about: one line for the list of experiments.
        profiles: its sizes by name; ``cpu`` is the usual one, else the first.
        rows: from the configuration that all rows share to the rows; without, the profile's axes make them.
        notes: what a reader of the table must know, such as what marks mean.
        source: where reported values come from.
        figure: draws the figure that belongs to it from the records of each row and a title, if it has one.
        in_leaderboard: it is read in the leaderboard and has no table of its own.
    """

    about: str
    profiles: Mapping[str, Profile]
    rows: Callable[[RunConfig], list[Row]] | None = None
    notes: tuple[str, ...] = ()
    source: str = ""
    figure: Callable[[Records, str], Plot | None] | None = None
    in_leaderboard: bool = False

    @property
    def usual_profile(self) -> str:
        return "cpu" if "cpu" in self.profiles else next(iter(self.profiles))

    def rows_of(self, profile: Profile) -> list[Row]:
        return self.rows(profile.base) if self.rows else grid_rows(profile.base, profile.axes)


def row(base: RunConfig, name: str, changes: Mapping[str, Any]) -> Row:
    """A row that differs from `base` in the values of `changes`, by their dotted names; options of strategies that take
    no part are left out."""
    config = unflatten(changes, base)
    return Row(name, replace(config, options=only_used(config.strategy, config.options)))


def named_rows(
    base: RunConfig,
    changes: Mapping[str, Mapping[str, Any]],
    against: str = "",
    table: str = "",
    eval_modes: Mapping[str, str] | None = None,
) -> list[Row]:
    """A row for each entry of `changes`.

    Args:
        base: the configuration that they share.
        changes: values by dotted names, for each row by its name.
        against: the row that the others are compared with.
        table: of ``reported.csv``, for what a paper reports.
        eval_modes: of rows that have another than the usual one.
    """
    rows = []
    for name, values in changes.items():
        reported, mode = reported_values(table, name, base.data.dataset), (eval_modes or {}).get(name, "")
        compared = "" if name == against else against
        rows.append(replace(row(base, name, values), reported=reported, against=compared, eval_mode=mode))
    return rows


def grid_rows(base: RunConfig, axes: Mapping[str, tuple[Any, ...]]) -> list[Row]:
    """A row for every combination of the axes' values, each configuration once, in the order of the axes.

    Raises:
        UserError: the first configuration that cannot work, or options of a strategy that is part of none.
    """
    strategies = axes.get("strategy", (base.strategy,))
    rows: dict[RunConfig, Row] = {}
    for values in itertools.product(*axes.values()):
        changes = dict(zip(axes, values, strict=True))
        options = {name: value for name, value in changes.items() if name.startswith("options.")}
        refuse_unused_options(strategies, unflatten(options).options)
        entry = row(base, ", ".join(map(str, values)), changes)
        try:
            validate(entry.config)
        except UserError as error:
            chosen = " ".join(f"{flag(name)} {value}" for name, value in changes.items())
            raise UserError(f"{error} (the run with {chosen})" if chosen else str(error)) from None
        rows.setdefault(entry.config, entry)
    return list(rows.values())


def runs_of(rows: Sequence[Row], seeds: Sequence[int], numbers: Sequence[int] = ()) -> list[RunConfig]:
    """The runs of all rows, or of those with these `numbers` (from 1), seed by seed, so that an interrupted experiment
    still compares; rows that use one trained network in several ways share its run.

    Raises:
        UserError: no seed, a seed given twice, or a row that does not exist.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {' '.join(map(str, seeds))}: give at least one, each once")
    if any(not 1 <= number <= len(rows) for number in numbers):
        raise UserError(f"--rows {' '.join(map(str, numbers))}: the experiment has rows 1 to {len(rows)}")
    chosen = [entry for number, entry in enumerate(rows, start=1) if not numbers or number in numbers]
    return list(dict.fromkeys(replace(entry.config, seed=seed) for seed in seeds for entry in chosen))


def changed_flag_words(profile: Profile, changed: Profile) -> list[str]:
    """The flags in which the configuration is not what the profile says."""
    flags = changed_flags(portable(changed.base), portable(profile.base))
    return [" ".join(words) for words in flags if words[0] not in FILL_IN]


def changed_words(profile: Profile, changed: Profile) -> list[str]:
    """What a file's name says of choices that are not the profile's."""
    words = [] if changed.base.data.dataset == profile.base.data.dataset else [changed.base.data.dataset]
    flags = changed_flag_words(profile, changed)
    words += [re.sub(r"[^A-Za-z0-9.]+", "-", flag_words).strip("-") for flag_words in flags]
    words += [] if changed.axes == profile.axes else list(map(name_of, changed.axes["strategy"]))
    words += [] if changed.trials == profile.trials else [f"trials-{changed.trials}"]
    return words + ([] if changed.objective == profile.objective else [changed.objective])


def row_hashes(rows: Sequence[Row], runtime: RuntimeConfig) -> dict[str, str]:
    """The hash of each row's configuration, by the row's name."""
    ids = run_ids([entry.config for entry in rows], runtime)
    return {entry.name: run_id.split("-")[-3] for entry, run_id in zip(rows, ids, strict=True)}


def recorded_hashes(rows: Sequence[Row], records: Sequence[Record]) -> dict[str, str]:
    """The same without the data and weight files, which records know: the hash of records with the row's choices."""

    def choices(values: Mapping[str, Any], weights: str) -> str:
        kept = {name: value for name, value in values.items() if name not in CONTENT}
        return config_hash(kept | {"model.weights": weights})

    known = {choices(unnest(record.config), record.labels["weights"]): record.config_hash for record in records}
    named = {entry.name: portable(entry.config) for entry in rows}
    values = {name: flatten(config) | {"model.backbone": full_name(config.model)} for name, config in named.items()}
    return {name: known.get(choices(values[name], config.model.weights), "") for name, config in named.items()}


def records_of(hashes: Mapping[str, str], records: Sequence[Record]) -> Records:
    """The records of rows that have any."""
    ordered = sorted(records, key=lambda record: record.seed)
    found = {name: [record for record in ordered if record.config_hash == code] for name, code in hashes.items()}
    return {name: several for name, several in found.items() if several}
