"""Two runs, or two configurations over their seeds, side by side: choices, metrics, and query by query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from retrieval_bench.columns import column, metric_names
from retrieval_bench.config import RunConfig, flat_values, unnest
from retrieval_bench.details import Details, read_details
from retrieval_bench.errors import UserError
from retrieval_bench.evaluation.statistics import SEEDS, bootstrap_interval, paired_permutation_test, paired_t_test
from retrieval_bench.leaderboard import runs_by_row
from retrieval_bench.records import Record, ResultsFolder
from retrieval_bench.strategies import STRATEGIES

Pair = tuple[Record, Record]
EXAMPLES = 5
"""Queries that are named as won and as lost."""


@dataclass(frozen=True)
class Comparison:
    """The first side less the second."""

    names: tuple[str, str]
    changes: list[tuple[str, str, str]]
    """Choices in which the configurations differ, with both values."""
    seeds: list[int]
    """Those that both sides have."""
    metrics: list[dict[str, Any]]
    """A row per metric: ``metric``, ``first`` and ``second`` (means over the common seeds), ``difference``; over seeds
    ``seeds_half`` (half of the t-interval) and ``seeds_p`` (paired t-test), NaN for fewer than two; over the classes of
    the queries ``low``, ``high`` (bootstrap) and ``p`` (permutation test), NaN without details of both sides."""
    won: tuple[int, list[str]] = (0, [])
    """Queries with a positive at rank 1 on the first side and not on the second (with several seeds: in fewer of them):
    how many, and names of some; `lost`: the reverse."""
    lost: tuple[int, list[str]] = (0, [])
    queries: int = 0
    """How many were compared; 0 without details, for a `reason`."""
    reason: str = ""


def compare(first: str, second: str, results: ResultsFolder) -> Comparison:
    """Compares two sides: the id of a run (or the beginning of one, or its file) or the hash of a configuration, which
    stands for all its seeds; runs of one seed with each other, and two single runs as they are. Raises
    :class:`UserError` for a side that does not exist, or one and the same on both sides."""
    one, other = _runs_by_seed(first, results), _runs_by_seed(second, results)
    seeds = sorted(set(one) & set(other))
    pairs = [(one[seed], other[seed]) for seed in seeds]
    if not seeds:
        if max(len(one), len(other)) > 1:
            raise UserError(f"{first} and {second} have no seed in common; name one run of each")
        pairs = [(next(iter(one.values())), next(iter(other.values())))]
    if all(left == right for left, right in pairs):
        raise UserError(f"{first} and {second} are the same; name two runs")
    over = f"{len(pairs)} seeds" if len(pairs) > 1 else ""
    one_name, other_name = (
        f"{run.strategy} on {run.dataset} ({run.config_hash}, {over or f'seed {run.seed}'})" for run in pairs[0]
    )
    names = (one_name, other_name)
    choices: Any = pd.DataFrame([_choices(run) for run in pairs[0]], dtype=object).drop(columns="seed", errors="ignore")
    choices = choices.where(choices.notna(), "-").map(str)
    changes = [(name, *choices[name]) for name in sorted(choices) if choices[name].nunique() > 1]
    files = [Path(word) for word in (first, second)]  # details lie beside a record that is named by its file
    folders = [ResultsFolder(path.parent.parent) if path.suffix == ".json" else results for path in files]
    try:
        details = _read_details(pairs, folders)
    except UserError as error:
        return Comparison(names, changes, seeds, _metric_rows(pairs, []), reason=str(error))
    won, lost = _won_and_lost(details)
    return Comparison(names, changes, seeds, _metric_rows(pairs, details), won, lost, len(details[0][0].queries))


def _choices(run: Record) -> dict[str, Any]:
    """The values of a run's configuration by dotted names; those that older records lack, since the choice came later,
    are at their defaults."""
    values = unnest(run.config)
    unused = tuple(f"options.{name}." for name in STRATEGIES if name not in str(values.get("strategy")).split("+"))
    return {name: value for name, value in flat_values(RunConfig()) if not name.startswith(unused)} | values


def _runs_by_seed(word: str, results: ResultsFolder) -> dict[int, Record]:
    """The runs that `word` names; raises :class:`UserError` for those of several kinds of device."""
    rows = runs_by_row(results.find(word))
    if len(rows) > 1:
        kinds = " and ".join(kind for _, kind in rows)
        raise UserError(f"{word}: there are runs of it on {kinds}; name runs by their ids, which end in the device")
    return {record.seed: record for runs in rows.values() for record in runs}


def _read_details(pairs: Sequence[Pair], folders: Sequence[ResultsFolder]) -> list[tuple[Details, Details]]:
    """The details of all runs, which must be about the same queries among the same images."""
    read = [[read_details(folder.details(run.id)) for folder, run in zip(folders, pair, strict=True)] for pair in pairs]
    first = read[0][0]
    for details in (side for pair in read for side in pair):
        same = all(np.array_equal(getattr(first, name), getattr(details, name)) for name in ("paths", "queries"))
        if not same or not np.array_equal(first.class_names[first.labels], details.class_names[details.labels]):
            raise UserError("they were not all tested on the same images, so queries cannot be compared")
    return [(one, other) for one, other in read]


def _metric_rows(pairs: Sequence[Pair], details: list[tuple[Details, Details]]) -> list[dict[str, Any]]:
    rows = []
    for name in metric_names(pairs[0][0].metrics):
        values = np.array([[run.metrics.get(name) for run in pair] for pair in pairs], dtype=float)
        if np.isnan(values).any():
            continue
        difference, half, p_value = paired_t_test(values[:, 0], values[:, 1])
        row = {"metric": name, "first": values[:, 0].mean(), "second": values[:, 1].mean(), "difference": difference}
        rows.append(row | {"seeds_half": half, "seeds_p": p_value} | _over_classes(name, details))
    return rows


def _over_classes(metric: str, details: list[tuple[Details, Details]]) -> dict[str, float]:
    """Interval and p-value of the difference over the classes of the queries, seeds averaged query by query."""

    def per_query(side: Details) -> np.ndarray:
        if metric == "map_at_r":
            return side.map_at_r.astype(float)
        return ((side.first_rank > 0) & (side.first_rank <= int(metric.removeprefix("recall_at_")))).astype(float)

    if not details or metric == "accuracy" or not details[0][0].first_rank.any():
        return {"low": np.nan, "high": np.nan, "p": np.nan}
    first = details[0][0]
    has_positive = first.first_rank > 0
    one, other = (np.mean([per_query(pair[side]) for pair in details], axis=0)[has_positive] for side in (0, 1))
    classes = first.labels[first.queries][has_positive]
    low, high = bootstrap_interval(one - other, classes)
    return {"low": low, "high": high, "p": paired_permutation_test(one, other, classes)[1]}


def _won_and_lost(details: list[tuple[Details, Details]]) -> list[tuple[int, list[str]]]:
    """Queries with a positive at rank 1 more often on one side: how many, and those that the other ranks worst."""
    one, other = (np.mean([pair[side].first_rank == 1 for pair in details], axis=0) for side in (0, 1))
    ranks = [np.mean([pair[side].first_rank for pair in details], axis=0) for side in (0, 1)]
    first, sides = details[0][0], []
    for is_better, rank_of_loser in ((one > other, ranks[1]), (other > one, ranks[0])):
        queries = np.flatnonzero(is_better)
        worst = queries[np.argsort(-rank_of_loser[queries], kind="stable")][:EXAMPLES]
        names = [f"{first.paths[first.queries[query]]} (rank {rank_of_loser[query]:.0f})" for query in worst]
        sides.append((len(queries), names))
    return sides


def to_lines(comparison: Comparison) -> list[str]:
    """The comparison as lines of text."""
    lines = [f"first:  {comparison.names[0]}", f"second: {comparison.names[1]}", ""]
    changes = [f"  {name}: {left} | {right}" for name, left, right in comparison.changes]
    lines += changes or ["  no difference in configuration"]
    if any(name.startswith("data.") for name, *_ in comparison.changes):
        lines += ["", "the data or how it is shown differs: the metrics below do not compare strategies alone"]
    lines += ["", f"{'':10}{'first':>8}{'second':>8}{'diff':>8}   {'95 % over seeds':26}{'95 % over classes':24}"]
    for row in comparison.metrics:
        shown = column(row["metric"])
        values = "".join(f"{shown.text(row[side]):>8}" for side in ("first", "second"))
        values += f"{shown.text(row['difference'], sign='+'):>8}"
        seeds, classes = "one seed", "-"
        if row["seeds_p"] == row["seeds_p"]:
            test = f"p {row['seeds_p']:.3f}" if len(comparison.seeds) >= SEEDS else "too few to test"
            seeds = f"± {shown.text(row['seeds_half'])}, {test}"
        if row["p"] == row["p"]:
            classes = f"[{shown.text(row['low'])}, {shown.text(row['high'])}], p {row['p']:.4f}"
        lines.append(f"{shown.title:10}{values}   {seeds:26}{classes:24}".rstrip())
    if not comparison.queries:
        return [*lines, "", f"queries are not compared: {comparison.reason}"]
    several = len(comparison.seeds) > 1
    how = "in more seeds than the second" if several else "and the second does not"
    lines += ["", f"of {comparison.queries:,} queries, the first finds {comparison.won[0]:,} at rank 1 {how};"]
    lines[-1] += f" the reverse holds for {comparison.lost[0]:,}"
    for side, (_, examples) in (("first", comparison.won), ("second", comparison.lost)):
        lines += [f"  {'more often' if several else 'only'} the {side}: {example}" for example in examples]
    return lines
