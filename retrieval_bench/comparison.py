"""Two runs, or two configurations over their seeds, side by side: what differs in them, in their figures, and query by query."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_bench.details import Details, details_path, read_details
from retrieval_bench.errors import UserError
from retrieval_bench.evaluation.statistics import SEEDS, bootstrap_interval, paired_permutation_test, paired_t_test
from retrieval_bench.leaderboard import METRIC, runs_by_row
from retrieval_bench.records import find_records
from retrieval_bench.tables import metric_title

EXAMPLES = 5
"""Queries that are named as won and as lost."""


@dataclass(frozen=True)
class Comparison:
    """The first side less the second.

    Attributes:
        names: of both sides.
        changes: per choice in which the configurations differ its name and both values.
        seeds: those that both sides have.
        metrics: a row per metric: ``metric``, ``first`` and ``second`` (means over the common seeds), ``difference``; over seeds
            ``seeds_half`` (half of the t-interval) and ``seeds_p`` (paired t-test), NaN for fewer than two seeds; over the classes of the
            queries ``low``, ``high`` (bootstrap) and ``p`` (permutation test), NaN without details of both sides.
        won: queries that the first side finds at rank 1 and the second does not (with several seeds: in fewer of them), with names of some.
        lost: those that the second does.
        queries: how many were compared; 0 without details.
        reason: why queries were not compared.
    """

    names: tuple[str, str]
    changes: list[tuple[str, str, str]]
    seeds: list[int]
    metrics: list[dict[str, Any]]
    won: tuple[int, list[str]]
    lost: tuple[int, list[str]]
    queries: int
    reason: str = ""


def compare(first: str, second: str, results: Path) -> Comparison:
    """Compares two sides: the id of a run (or the beginning of one, or its file) or the hash of a configuration, which stands for all its
    seeds. With one run on a side, that run is compared with every run of the other of the same seed; where there is none, run with run.

    Raises:
        UserError: a side that is not there, or one and the same on both sides.
    """
    sides = [_side(word, results) for word in (first, second)]
    seeds = sorted(set(sides[0]) & set(sides[1]))
    pairs = [(sides[0][seed], sides[1][seed]) for seed in seeds]
    if not seeds:
        if max(map(len, sides)) > 1:
            raise UserError(f"{first} and {second} have no seed in common; name one run of each")
        pairs = [(next(iter(sides[0].values())), next(iter(sides[1].values())))]
    if all(one == other for one, other in pairs):
        raise UserError(f"{first} and {second} are the same; name two runs")
    names = (_name(pairs[0][0], len(pairs)), _name(pairs[0][1], len(pairs)))
    changes = differing(pairs[0][0]["config"], pairs[0][1]["config"])
    try:
        looked = _details(pairs, (_home(first, results), _home(second, results)))
    except UserError as error:
        return Comparison(names, changes, seeds, _rows(pairs, []), (0, []), (0, []), 0, str(error))
    return Comparison(names, changes, seeds, _rows(pairs, looked), *_won_and_lost(looked), len(looked[0][0].queries))


def _side(word: str, results: Path) -> dict[int, dict[str, Any]]:
    """The runs that `word` names, by seed; raises :class:`UserError` for those of several kinds of device."""
    found = runs_by_row(find_records(word, results))
    if len(found) > 1:
        kinds = " and ".join(kind for _, kind in found)
        raise UserError(f"{word}: there are runs of it on {kinds}; name runs by their ids, which end in the device")
    return {record["seed"]: record for record in next(iter(found.values()))}


def _name(record: dict[str, Any], pairs: int) -> str:
    over = f"{pairs} seeds" if pairs > 1 else f"seed {record['seed']}"
    return f"{record['labels']['strategy']} on {record['config']['data']['dataset']} ({record['config_hash']}, {over})"


def differing(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> list[tuple[str, str, str]]:
    """The choices in which two configurations differ: name, and both values as text; the seed is left out."""
    found: list[tuple[str, str, str]] = []
    for key in sorted(set(one) | set(other)):
        left, right = one.get(key), other.get(key)
        if isinstance(left, dict | None) and isinstance(right, dict | None):
            found += differing(left or {}, right or {}, f"{prefix}{key}.")
        elif left != right and f"{prefix}{key}" != "seed":
            found.append((f"{prefix}{key}", "-" if left is None else str(left), "-" if right is None else str(right)))
    return found


def _home(word: str, results: Path) -> Path:
    """The folder that holds the details of a side: beside the record, if that is named by its file."""
    path = Path(word)
    return path.parent.parent if path.suffix == ".json" else results


def _details(
    pairs: list[tuple[dict[str, Any], dict[str, Any]]], homes: tuple[Path, Path]
) -> list[tuple[Details, Details]]:
    """The details of all runs, which must be about the same queries among the same images."""
    paths = [[details_path(home, side["id"]) for home, side in zip(homes, pair, strict=True)] for pair in pairs]
    found = [(read_details(one), read_details(other)) for one, other in paths]
    first = found[0][0]
    for details in (side for pair in found for side in pair):
        same = all(np.array_equal(getattr(first, name), getattr(details, name)) for name in ("paths", "queries"))
        if not same or not np.array_equal(first.class_names[first.labels], details.class_names[details.labels]):
            raise UserError("they were not all tested on the same images, so queries cannot be compared")
    return found


def _rows(
    pairs: list[tuple[dict[str, Any], dict[str, Any]]], looked: list[tuple[Details, Details]]
) -> list[dict[str, Any]]:
    """The rows of :attr:`Comparison.metrics`."""
    names = [
        name
        for name in pairs[0][0]["metrics"]
        if METRIC.fullmatch(name) and all(side["metrics"].get(name) is not None for pair in pairs for side in pair)
    ]
    rows = []
    for name in sorted(names, key=lambda name: (not name.startswith("recall"), len(name), name)):
        values = np.array([[side["metrics"][name] for side in pair] for pair in pairs], dtype=float)
        difference, half, p_value = paired_t_test(values[:, 0], values[:, 1])
        row = {"metric": name, "first": values[:, 0].mean(), "second": values[:, 1].mean(), "difference": difference}
        rows.append(row | {"seeds_half": half, "seeds_p": p_value} | _over_classes(name, looked))
    return rows


def _over_classes(name: str, looked: list[tuple[Details, Details]]) -> dict[str, float]:
    """Interval and p-value of the difference over the classes of the queries, seeds averaged query by query."""
    nothing = {"low": np.nan, "high": np.nan, "p": np.nan}
    if not looked or name == "accuracy" or not (able := looked[0][0].first_rank > 0).any():
        return nothing
    one, other = (np.mean([_values(name, pair[side]) for pair in looked], axis=0)[able] for side in (0, 1))
    classes = looked[0][0].labels[looked[0][0].queries][able]
    low, high = bootstrap_interval(one - other, classes)
    return {"low": low, "high": high, "p": paired_permutation_test(one, other, classes)[1]}


def _values(name: str, details: Details) -> np.ndarray:
    """A metric's value for each query."""
    if name == "map_at_r":
        return details.map_at_r.astype(float)
    k = int(name.rsplit("_", 1)[1])
    return ((details.first_rank > 0) & (details.first_rank <= k)).astype(float)


def _won_and_lost(looked: list[tuple[Details, Details]]) -> tuple[tuple[int, list[str]], tuple[int, list[str]]]:
    """Queries that one side finds at rank 1 more often than the other: how many, and those that the other ranks worst."""
    one, other = (np.mean([pair[side].first_rank == 1 for pair in looked], axis=0) for side in (0, 1))
    ranks = [np.mean([pair[side].first_rank for pair in looked], axis=0) for side in (0, 1)]
    about, found = looked[0][0], []
    for better, of_loser in ((one > other, ranks[1]), (other > one, ranks[0])):
        places = np.flatnonzero(better)
        worst = places[np.argsort(-of_loser[places], kind="stable")][:EXAMPLES]
        found.append(
            (len(places), [f"{about.paths[about.queries[place]]} (rank {of_loser[place]:.0f})" for place in worst])
        )
    return found[0], found[1]


def to_lines(found: Comparison) -> list[str]:
    """The comparison as lines of text."""
    lines = [f"first:  {found.names[0]}", f"second: {found.names[1]}", ""]
    lines += [f"  {name}: {left} | {right}" for name, left, right in found.changes] or [
        "  no difference in configuration"
    ]
    if any(name.startswith("data.") for name, *_ in found.changes):
        lines += ["", "the data or how it is shown differs: the figures below do not compare strategies alone"]
    lines += ["", f"{'':10}{'first':>8}{'second':>8}{'diff':>8}   {'95 % over seeds':26}{'95 % over classes':24}"]
    for row in found.metrics:
        seeds = _over_seeds(row, len(found.seeds))
        classes = (
            f"[{100 * row['low']:.2f}, {100 * row['high']:.2f}], p {row['p']:.4f}" if row["p"] == row["p"] else "-"
        )
        figures = "".join(
            f"{100 * row[name]:{sign}8.2f}" for name, sign in (("first", ""), ("second", ""), ("difference", "+"))
        )
        lines.append(f"{metric_title(row['metric']):10}{figures}   {seeds:26}{classes:24}".rstrip())
    if not found.queries:
        return [*lines, "", f"queries are not compared: {found.reason}"]
    several = len(found.seeds) > 1
    how = "in more seeds than the other" if several else "alone"
    counts = f"the first finds {found.won[0]:,} {how}, the second {found.lost[0]:,}"
    lines += ["", f"at rank 1, of {found.queries:,} queries {counts}"]
    for side, (_, examples) in (("first", found.won), ("second", found.lost)):
        lines += [f"  {'more often' if several else 'only'} the {side}: {example}" for example in examples]
    return lines


def _over_seeds(row: dict[str, Any], count: int) -> str:
    """The interval over seeds, and the p-value of three or more."""
    if row["seeds_p"] != row["seeds_p"]:
        return "one seed"
    return f"± {100 * row['seeds_half']:.2f}, " + (f"p {row['seeds_p']:.3f}" if count >= SEEDS else "too few to test")
