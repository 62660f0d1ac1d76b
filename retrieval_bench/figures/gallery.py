"""Every figure that a set of records gives, protocol by protocol."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from retrieval_bench.errors import first_line
from retrieval_bench.figures.canvas import Picture
from retrieval_bench.figures.curves import learning_curves
from retrieval_bench.figures.pruning import SIZES, is_pruned, pruning_curve
from retrieval_bench.figures.routes import is_routed, routes
from retrieval_bench.figures.tradeoff import COSTS, has_cost, tradeoff
from retrieval_bench.figures.variation import STRATEGIES, has_history, variation_heat_map
from retrieval_bench.leaderboard import PROTOCOL, build_table
from retrieval_bench.progress import logger
from retrieval_bench.tables import protocol_titles

RESULT = re.compile(
    r"recall_at_|map_at_r|accuracy|seeds|strategy|options|standing|difference|p_value|peak_|train_s|macs|parameters|trained_|images_seen|latency|threads|device|config_hash"
)
"""Columns of the table that are no choices."""
OF_A_KIND = 12
"""Single runs of a protocol that have a figure of a kind, those of the best rows."""
Record = dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """A picture with the name of its files and the protocol that it is of."""

    name: str
    protocol: str
    picture: Picture


def gallery(records: list[Record]) -> Iterator[Shown]:
    """The figures of each protocol, best protocol order of the table: accuracy against each cost, pruning, losses, variations, routes."""
    table = build_table(records)
    if not len(table):
        return
    by_hash = defaultdict(list)
    for record in records:
        by_hash[record["config_hash"]].append(record)
    taken: set[str] = set()
    groups = [group for _, group in table.groupby(list(PROTOCOL), sort=False, dropna=False)]
    for title, group in zip(protocol_titles(group.iloc[0] for group in groups), groups, strict=True):
        slug = _free(protocol_slug(title), taken)
        yield from _of_protocol(
            told_apart(group),
            [record for code in group["config_hash"].unique() for record in by_hash[code]],
            title,
            slug,
        )


def _of_protocol(table: Any, records: list[Record], title: str, slug: str) -> Iterator[Shown]:
    for cost in COSTS:
        if has_cost(table, cost):
            yield Shown(f"tradeoff-{slug}-{cost}", title, tradeoff(table, cost, title))
    for cost in SIZES:
        if has_cost(table, cost) and table.loc[table[cost].notna(), "strategy"].map(is_pruned).sum() > 1:
            yield Shown(f"pruning-{slug}-{cost}", title, pruning_curve(table, cost, title))
    curves = learning_curves(records, dict(zip(table["config_hash"], table["strategy"], strict=True)), title)
    if curves is not None:
        yield Shown(f"losses-{slug}", title, curves)
    place = {code: number for number, code in enumerate(table["config_hash"])}
    firsts: dict[str, Record] = {}
    for record in sorted(records, key=lambda record: (place[record["config_hash"]], record["seed"], record["id"])):
        firsts.setdefault(record["config_hash"], record)
    for make in (_variation, _routes):
        yield from islice((shown for record in firsts.values() if (shown := _one_run(make, record, title))), OF_A_KIND)


def _one_run(make: Callable[[Record, str], Shown | None], record: Record, title: str) -> Shown | None:
    """What `make` draws of one run, if there is something to draw; the facts of an odd record cost a line."""
    try:
        return make(record, title)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        logger.info(f"skipped the figures of {record['id']}: {first_line(error)}")
        return None


def _variation(record: Record, title: str) -> Shown | None:
    facts = next((record["facts"][key] for key in STRATEGIES if has_history(record["facts"].get(key, {}))), None)
    return (
        Shown(f"variation-{record['id']}", title, variation_heat_map(facts, _words(record, title))) if facts else None
    )


def _routes(record: Record, title: str) -> Shown | None:
    return Shown(f"routes-{record['id']}", title, routes(record, _words(record, title))) if is_routed(record) else None


def _words(record: Record, title: str) -> str:
    return f"{record['labels']['strategy']}, {record['config']['loss']['loss']}, seed {record['seed']}. {title}"


def told_apart(table: Any) -> Any:
    """The table with labels of their own for the rows of one strategy: after a comma, the first choices that tell them apart."""
    labels = table["strategy"].astype(str)
    choices = [
        "loss",
        "epochs",
        *(name for name in table if name not in ("loss", "epochs") and not RESULT.match(name)),
        "device",
        "config_hash",
    ]
    for name in choices:
        longer = labels + ", " + table[name].map(lambda value, name=name: _choice(name, value))
        for label, rows in labels.groupby(labels).groups.items():
            if len(rows) > 1 and longer[rows].nunique() > 1:
                labels = labels.where(labels != label, longer)
    return table.assign(strategy=labels)


def _choice(name: str, value: object) -> str:
    return {"loss": f"{value}", "epochs": f"{value} epochs", "device": str(value).split(":")[0]}.get(
        name, f"{name} {value}"
    )


def protocol_slug(title: str) -> str:
    """The title of a protocol for the name of a file."""
    words = re.sub(r"first |\.safetensors|\.pth", "", title)
    return re.sub(r"[^A-Za-z0-9_]+", "-", words).strip("-")


def _free(slug: str, taken: set[str]) -> str:
    """`slug`, with a number where another protocol has it."""
    free = next(
        name for number in range(1, len(taken) + 2) if (name := f"{slug}-{number}" if number > 1 else slug) not in taken
    )
    taken.add(free)
    return free
