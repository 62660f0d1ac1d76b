"""An experiment: named rows of configurations times seeds, perhaps with reported values and a figure.

Benchmarks, the tables of papers, grids, what a search chose and the Reality Check are all experiments: one loop makes
the runs, and one table shows means over seeds, intervals, reported values beside measured ones and differences.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from retrieval_bench.columns import METRIC, column
from retrieval_bench.config import (
    CONTENT,
    RunConfig,
    RuntimeConfig,
    changed_flags,
    config_hash,
    flag,
    flat_values,
    flatten,
    portable,
    unflatten,
    unnest,
)
from retrieval_bench.data.sampler import BatchSampler
from retrieval_bench.errors import UserError
from retrieval_bench.evaluation.statistics import LEVEL, SEEDS, holm, paired_t_test, t_interval
from retrieval_bench.figures.style import Plot
from retrieval_bench.files import write_text
from retrieval_bench.identity import open_images, run_ids
from retrieval_bench.models.build import build_embedder, full_name
from retrieval_bench.models.embedder import freeze_batch_norms
from retrieval_bench.records import Record
from retrieval_bench.run import open_choices
from retrieval_bench.strategies import build_strategy, only_used, refuse_unused_options
from retrieval_bench.tables import TextTable
from retrieval_bench.validation import validate

Records = dict[str, list[Record]]
"""The records of each row, by its name; seeds in order."""
Objective = Literal["recall_at_1", "map_at_r"]
"""What a search may maximise."""
DRAWN = "drawn patterns and an untrained network: shows that everything works, measures nothing"
"""About profiles on synthetic data."""
CLOSED_SET = "Top-1 accuracy of the classifier and R@K of its features"
FILL_IN = ("--dataset", "--backbone", "--weights", "--mean", "--std")
"""Flags that fill a profile in, and do not make another one of it."""
SETTINGS = {
    "data": ("dataset", "split", "classes", "image_size"),
    "train": ("epochs", "optimizer", "lr", "schedule"),
}
"""Choices that are columns of every table."""


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
    """

    name: str
    config: RunConfig
    reported: Mapping[str, float] = field(default_factory=dict)
    against: str = ""
    eval_mode: str = ""
    more: tuple[str, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)

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
    """

    about: str
    base: RunConfig
    seeds: tuple[int, ...] = (0, 1, 2)
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    trials: int = 0
    objective: Objective = "recall_at_1"


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


def row(
    base: RunConfig,
    name: str,
    changes: Mapping[str, Any],
    against: str = "",
    reported: Mapping[str, float] | None = None,
    eval_mode: str = "",
) -> Row:
    """A row that differs from `base` in the values of `changes`, by their dotted names; options of strategies that take
    no part are left out."""
    config = unflatten(changes, base)
    config = replace(config, options=only_used(config.strategy, config.options))
    return Row(name, config, reported or {}, "" if against == name else against, eval_mode)


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
    words = [words for words in changed_flags(changed.base, profile.base) if words[0] not in FILL_IN]
    return [" ".join(flag_words) for flag_words in words]


def changed_words(profile: Profile, changed: Profile) -> list[str]:
    """What a file's name says of choices that are not the profile's."""
    words = [] if changed.base.data.dataset == profile.base.data.dataset else [changed.base.data.dataset]
    flags = changed_flag_words(profile, changed)
    words += [re.sub(r"[^A-Za-z0-9.]+", "-", flag_words).strip("-") for flag_words in flags]
    words += [] if changed.axes == profile.axes else list(changed.axes["strategy"])
    words += [] if changed.trials == profile.trials else [f"trials-{changed.trials}"]
    return words + ([] if changed.objective == profile.objective else [changed.objective])


def refuse_idle_flags(experiment: Experiment, profile: Profile, changed: Profile) -> None:
    """Raises :class:`UserError` for a choice in the changed profile that changes no row, since the rows make that
    choice themselves."""
    rows, usual = experiment.rows_of(changed), dict(flat_values(profile.base))
    for name, value in flat_values(changed.base):
        if value != usual[name]:
            without = replace(changed, base=unflatten({name: usual[name]}, changed.base))
            if experiment.rows_of(without) == rows:
                raise UserError(
                    f"{flag(name)} changes nothing here: the rows of this experiment set it themselves, or do without"
                )


def rehearse(rows: Sequence[Row], runtime: RuntimeConfig) -> None:
    """Passes every row through all checks that need no training: options, data, classes of a batch, and blocks of the
    backbone, on a batch of zeros. Raises :class:`UserError`."""
    for entry in rows:
        validate(entry.config)
    models = {}
    for entry in rows:
        config, size = entry.config, entry.config.data.image_size
        table, split = open_images(config.data, runtime.data_root)
        BatchSampler(split.train_labels(table.labels), config.train.batch_size, config.samples_per_class)
        if (config.model, size) not in models:
            models[config.model, size] = build_embedder(config.model, size)
        model = copy.deepcopy(models[config.model, size])
        if config.train.freeze_bn:
            freeze_batch_norms(model)
        preferred = {name: candidates[0] for name, candidates in open_choices(config).items()}
        strategy = build_strategy(config.strategy, replace(config.options, **preferred))
        strategy.parameter_groups(strategy.prepare(model, torch.zeros(2, 3, size, size, dtype=torch.uint8)), [])


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
    hashes = {}
    for entry in rows:
        config = portable(entry.config)
        values = flatten(config) | {"model.backbone": full_name(config.model)}
        hashes[entry.name] = known.get(choices(values, config.model.weights), "")
    return hashes


def records_of(hashes: Mapping[str, str], records: Sequence[Record], kind: str) -> Records:
    """The records of rows that have any, made on this kind of device."""
    by_row = {
        name: [record for record in records if record.config_hash == code and record.kind == kind]
        for name, code in hashes.items()
    }
    return {name: sorted(several, key=lambda record: record.seed) for name, several in by_row.items() if several}


def measured_table(rows: Sequence[Row], records: Records, ranked: bool = False) -> pd.DataFrame:
    """A line per row, numbers only: what the CSV holds.

    Per metric (``recall_at_K``, and ``accuracy`` first in a closed set) its mean over seeds as a fraction, ``_ci95``
    (half of the t-interval, empty for one seed) and ``_reported``; ``sd_over_draws`` of the first metric, for routes
    that are drawn at test; ``difference`` of the first metric to the row ``against`` (mean over the seeds that both
    have) with ``_ci95``; ``parameters`` and ``macs`` (empty for evaluation modes, whose network would be another);
    ``images_seen`` in the training, rejected passes included, and ``per_1000_images``, the first metric's share;
    choices (:data:`SETTINGS`); and the columns of the rows.

    Args:
        rows: the experiment's rows.
        records: of each row that was run.
        ranked: best row first, and every other one against it. Adds ``rank`` by the mean of the first metric;
            ``p_value`` of the paired t-test over seeds and ``p_holm``, corrected over the rows; ``is_tied``, whether
            nothing significant separates the row from the best one (empty where fewer than three seeds leave that
            open).
    """
    table = pd.DataFrame([_line(entry, records) for entry in rows])
    if not ranked:
        return table
    first = rows[0].metrics[0]
    order = table.sort_values(first, ascending=False, na_position="last", kind="stable").index
    best = rows[order[0]]
    rows = [replace(rows[place], against="" if rows[place] is best else best.name) for place in order]
    table = pd.DataFrame([_line(entry, records) for entry in rows])
    p_values = [_p_value(entry, best, first, records) for entry in rows]
    corrected = holm(p_values)
    table.insert(0, "rank", table[first].rank(ascending=False, method="min").astype("Int64"))
    is_tied = [None if np.isnan(p) else bool(p >= LEVEL) for p in corrected]
    return table.assign(p_value=p_values, p_holm=corrected, is_tied=is_tied)


def _line(entry: Row, records: Records) -> dict[str, Any]:
    own, first, config = records.get(entry.name, []), entry.metrics[0], entry.config
    line: dict[str, Any] = {
        "row": entry.name,
        "strategy": portable(config).strategy_label,
        "loss": config.loss.loss,
        "seeds": len(own),
    }
    metrics = {record.seed: entry.measured(record) for record in own}
    for name in entry.metrics:
        line[name], line[f"{name}_ci95"] = _mean([values[name] for values in metrics.values() if name in values])
        line[f"{name}_reported"] = entry.reported.get(name)
    drawn = [values[f"{first}_sd"] for values in metrics.values() if "draws" in values]
    line |= {"sd_over_draws": _mean(drawn)[0], "against": entry.against}
    pairs = _pairs(entry, entry.against, first, records)
    line["difference"], line["difference_ci95"] = _mean([one - other for one, other in pairs])
    for name in ("parameters", "macs", "images_seen", "train_seconds"):
        is_other_network = entry.eval_mode and name in ("parameters", "macs")  # the record counts the usual one
        line[name] = None if is_other_network else _mean([record.cost[name] for record in own])[0]
    seen, value = line["images_seen"], line[first]
    line["per_1000_images"] = round(1000 * value / seen, 6) if seen and value is not None else None
    settings = {name: getattr(getattr(config, part), name) for part, names in SETTINGS.items() for name in names}
    return line | settings | dict(entry.columns)


def _pairs(entry: Row, against: str, metric: str, records: Records) -> list[tuple[float, float]]:
    """The metric of the row and of the other one, for each seed that both have."""
    others = {record.seed: record.metrics for record in records.get(against, [])}
    own = [(entry.measured(record), others.get(record.seed, {})) for record in records.get(entry.name, [])]
    return [(values[metric], other[metric]) for values, other in own if metric in values and metric in other]


def _mean(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and half of the 95 % t-interval; None for what too few values do not give."""
    if not values:
        return None, None
    return round(float(np.mean(values)), 6), (round(float(t_interval(values)[1]), 6) if len(values) > 1 else None)


def _p_value(entry: Row, best: Row, metric: str, records: Records) -> float:
    pairs = [] if entry.name == best.name else _pairs(entry, best.name, metric, records)
    return (
        paired_t_test([one for one, _ in pairs], [other for _, other in pairs])[2]
        if len(pairs) >= SEEDS
        else float("nan")
    )


def readable_table(table: Any) -> pd.DataFrame:
    """The same as text for people: percentages, reported values beside measured ones, only columns that say something;
    ``=`` behind ranks that nothing significant separates from the first, ``?`` where seeds are too few."""
    names = [name for name in table if METRIC.fullmatch(name)]
    first, shown = column(names[0]), pd.DataFrame(index=table.index)

    def texts(name: str, like: str = "", sign: str = "") -> list[str]:
        halves = table[f"{name}_ci95"] if f"{name}_ci95" in table else [None] * len(table)
        return [column(like or name).text(*pair, sign=sign) for pair in zip(table[name], halves, strict=True)]

    if "rank" in table:
        marks = {True: " =", False: "", None: " ?"}
        shown["rank"] = [
            "" if rank is pd.NA else f"{rank}{marks[is_tied] if number else ''}"
            for number, (rank, is_tied) in enumerate(zip(table["rank"], table["is_tied"], strict=True))
        ]
    shown["setting"] = table["row"]
    if "chosen" in table:
        shown["chosen"] = table["chosen"]
    if table["loss"].nunique() > 1:
        shown["loss"] = table["loss"].where(table["images_seen"] != 0, "-")
    for name in names:
        shown[column(name).title] = texts(name)
    if table["sd_over_draws"].notna().any():
        shown[f"{first.title}, sd over draws"] = texts("sd_over_draws", names[0])
    for name in names:
        if table[f"{name}_reported"].notna().any():
            shown[f"reported {column(name).title}"] = texts(f"{name}_reported", name)
    if table["difference"].notna().any():
        shown[f"{first.title} difference"] = texts("difference", names[0], "+")
    if "rank" in table:
        shown["p (Holm)"] = ["" if p != p else f"{p:.3f}" for p in table["p_holm"]]
    if "chosen" in table:
        shown[f"validation {column(table['objective'].iloc[0]).title}"] = texts(
            "validation", table["objective"].iloc[0]
        )
        failed = table["failed_trials"].map(lambda count: f" ({count} failed)" if count else "")
        shown["trials"] = table["trials"].astype(str) + failed
        shown["images in search"] = texts("search_images_seen", "images_seen")
    for name in ("parameters", "macs", "images_seen", "train_seconds"):
        shown[column(name).title] = texts(name)
    shown[f"{first.title} per 1,000 images"] = texts("per_1000_images", names[0])
    for name in ("optimizer", "lr", "schedule"):
        if table[name].nunique() > 1 and "chosen" not in table:
            shown[name] = table[name].astype(str).where(table["images_seen"] != 0, "-")
    return shown.assign(seeds=table["seeds"].astype(str))


def write_experiment(
    stem: Path,
    experiment: Experiment,
    profile: Profile,
    changed: Profile,
    rows: Sequence[Row],
    records: Records,
    notes: Sequence[str] = (),
) -> str:
    """Writes `stem` + .csv (numbers), .md and .tex (text), and .png where the experiment has a figure; nothing without
    records.

    Args:
        stem: path without ending.
        experiment: what is shown.
        profile: as it is.
        changed: as it was used.
        rows: of the table.
        records: of the rows.
        notes: a further line above the table, then Markdown below it.

    Returns:
        The Markdown.
    """
    if not records:
        return ""
    metrics = "R@K" if changed.base.data.split != "closed_set" else CLOSED_SET
    lines = [
        _headline(profile, changed, records),
        *([experiment.source] if any(row.reported for row in rows) else []),
        *experiment.notes,
        f"{metrics} in percent: mean over seeds ± half of the 95 % t-interval; differences are paired by seed.",
        *notes[:1],
    ]
    table = measured_table(rows, records, ranked=bool(changed.trials))
    text = TextTable(" ".join(lines), readable_table(table))
    parts = [f"# {stem.name}", *lines, text.to_markdown()]
    plot = experiment.figure(records, lines[0]) if experiment.figure else None
    if plot is not None:
        plot.save(stem.with_name(f"{stem.name}.png"))
        parts += [f"![{experiment.about}]({stem.name}.png)", *(["\n".join(plot.notes)] if plot.notes else [])]
    markdown = "\n\n".join([*parts, *notes[1:]]) + "\n"
    write_text(stem.with_name(f"{stem.name}.csv"), table.assign(profile=lines[0]).to_csv(index=False))
    write_text(stem.with_name(f"{stem.name}.tex"), text.to_latex())
    write_text(stem.with_name(f"{stem.name}.md"), markdown)
    return markdown


def _headline(profile: Profile, changed: Profile, records: Records) -> str:
    """What was done, in a line that stands above every table and figure."""
    data, train, model = changed.base.data, changed.base.train, changed.base.model
    made = [record for several in records.values() for record in several]
    devices = "; ".join(sorted({record.device for record in made}))
    part = f", first {data.classes} classes of each side" if data.classes else ""
    flags = changed_flag_words(profile, changed)
    changes = f", but for {', '.join(flags)}" if flags else ""
    return (
        f"Measured: {profile.about}{changes}. {data.dataset} "
        f"({data.split}{part}), {model.backbone} ({made[0].labels['weights']}), {data.image_size} px, {train.epochs} "
        f"epochs, batches of {train.batch_size}; {devices}."
    )
