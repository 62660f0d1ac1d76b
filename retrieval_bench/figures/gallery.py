"""Every figure that a set of records gives, protocol by protocol."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from retrieval_bench.answer import best_of_each
from retrieval_bench.errors import first_line
from retrieval_bench.figures.curves import learning_curves
from retrieval_bench.figures.elsewhere import home_and_elsewhere
from retrieval_bench.figures.forest import forest
from retrieval_bench.figures.pruning import pruning_curve
from retrieval_bench.figures.routes import routes
from retrieval_bench.figures.style import Plot
from retrieval_bench.figures.tradeoff import tradeoff
from retrieval_bench.figures.variation import weight_variation
from retrieval_bench.leaderboard import distinct_labels, leaderboard, protocols, row_keys, runs_by_row
from retrieval_bench.progress import logger
from retrieval_bench.records import Record

MOST_RUNS = 12
"""Single runs of a protocol that have a figure of a kind, those of the best rows."""


@dataclass(frozen=True)
class NamedFigure:
    """A plot, the name of its files, and the title of the protocol that it is of."""

    name: str
    protocol: str
    plot: Plot


def figures_of(records: Sequence[Record]) -> Iterator[NamedFigure]:
    """The figures of each protocol, in the order of the leaderboard: the forest plot, accuracy against costs, gain at
    home against change elsewhere, pruning, losses, and of single runs weight variations and routes."""
    table, runs = leaderboard(records), runs_by_row(records)
    slugs: list[str] = []
    for title, rows in protocols(table) if len(table) else ():
        slug = re.sub(r"[^A-Za-z0-9_]+", "-", re.sub(r"first |\.safetensors|\.pth", "", title)).strip("-")
        slugs.append(slug)
        slug += f"-{slugs.count(slug)}" if slugs.count(slug) > 1 else ""
        if plot := forest(best_of_each(rows), title):
            yield NamedFigure(f"forest-{slug}", title, plot)
        rows = rows.assign(strategy=distinct_labels(rows))
        records_by_row = dict(zip(rows["strategy"], map(runs.__getitem__, row_keys(rows)), strict=True))
        if plot := tradeoff(rows, title=title):
            yield NamedFigure(f"tradeoff-{slug}", title, plot)
        of_rows = {"elsewhere": home_and_elsewhere, "pruning": pruning_curve, "losses": learning_curves}
        for kind, draw in of_rows.items():
            if plot := draw(records_by_row, title):
                yield NamedFigure(f"{kind}-{slug}", title, plot)
        for kind, draw in (("variation", weight_variation), ("routes", routes)):
            single = ((several[0], _draw_run(draw, several, title)) for several in records_by_row.values())
            shown = ((record, plot) for record, plot in single if plot)
            for record, plot in islice(shown, MOST_RUNS):
                yield NamedFigure(f"{kind}-{record.id}", title, plot)


def _draw_run(draw: Callable[..., Plot | None], records: Sequence[Record], title: str) -> Plot | None:
    """The figure of the first run of a row; what an odd record cannot give costs a line."""
    record = records[0]
    words = f"{record.strategy}, {record.config['loss']['loss']}, seed {record.seed}. {title}"
    try:
        return draw({record.strategy: records}, words)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        logger.info(f"skipped the figures of {record.id}: {first_line(error)}")
        return None
