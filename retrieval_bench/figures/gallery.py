"""Every figure that a set of records gives, protocol by protocol."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
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
from retrieval_bench.leaderboard import distinct_labels, leaderboard, protocols
from retrieval_bench.progress import logger
from retrieval_bench.records import Record

OF_A_KIND = 12
"""Single runs of a protocol that have a figure of a kind, those of the best rows."""


@dataclass(frozen=True)
class NamedFigure:
    """A picture with the name of its files and the protocol that it is of."""

    name: str
    protocol: str
    plot: Picture


def figures_of(records: Sequence[Record]) -> Iterator[NamedFigure]:
    """The figures of each protocol, best protocol order of the table: accuracy against each cost, pruning, losses, variations, routes."""
    table = leaderboard(records)
    if not len(table):
        return
    by_hash = defaultdict(list)
    for record in records:
        by_hash[record.config_hash].append(record)
    taken: set[str] = set()
    for title, group in protocols(table):
        slug = _free(protocol_slug(title), taken)
        yield from _of_protocol(
            group.assign(strategy=distinct_labels(group)),
            [record for code in group["config_hash"].unique() for record in by_hash[code]],
            title,
            slug,
        )


def _of_protocol(table: Any, records: list[Record], title: str, slug: str) -> Iterator[NamedFigure]:
    for cost in COSTS:
        if has_cost(table, cost):
            yield NamedFigure(f"tradeoff-{slug}-{cost}", title, tradeoff(table, cost, title))
    for cost in SIZES:
        if has_cost(table, cost) and table.loc[table[cost].notna(), "strategy"].map(is_pruned).sum() > 1:
            yield NamedFigure(f"pruning-{slug}-{cost}", title, pruning_curve(table, cost, title))
    curves = learning_curves(records, dict(zip(table["config_hash"], table["strategy"], strict=True)), title)
    if curves is not None:
        yield NamedFigure(f"losses-{slug}", title, curves)
    place = {code: number for number, code in enumerate(table["config_hash"])}
    firsts: dict[str, Record] = {}
    for record in sorted(records, key=lambda record: (place[record.config_hash], record.seed, record.id)):
        firsts.setdefault(record.config_hash, record)
    for make in (_variation, _routes):
        yield from islice((shown for record in firsts.values() if (shown := _one_run(make, record, title))), OF_A_KIND)


def _one_run(make: Callable[[Record, str], NamedFigure | None], record: Record, title: str) -> NamedFigure | None:
    """What `make` draws of one run, if there is something to draw; the facts of an odd record cost a line."""
    try:
        return make(record, title)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        logger.info(f"skipped the figures of {record.id}: {first_line(error)}")
        return None


def _variation(record: Record, title: str) -> NamedFigure | None:
    facts = next((record.info[key] for key in STRATEGIES if has_history(record.info.get(key, {}))), None)
    return (
        NamedFigure(f"variation-{record.id}", title, variation_heat_map(facts, _words(record, title)))
        if facts
        else None
    )


def _routes(record: Record, title: str) -> NamedFigure | None:
    return (
        NamedFigure(f"routes-{record.id}", title, routes(record, _words(record, title))) if is_routed(record) else None
    )


def _words(record: Record, title: str) -> str:
    return f"{record.strategy}, {record.config['loss']['loss']}, seed {record.seed}. {title}"


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
