"""Records to one self-contained HTML page: tables, figures and galleries, with nothing to load from elsewhere."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from retrieval_bench.columns import column
from retrieval_bench.details import Details, read_details
from retrieval_bench.errors import UserError
from retrieval_bench.figures.embedding_map import embedding_map
from retrieval_bench.figures.gallery import NamedFigure, figures_of
from retrieval_bench.files import write_text
from retrieval_bench.leaderboard import (
    LEGEND,
    distinct_labels,
    leaderboard,
    protocols,
    readable,
    reported_tables,
    row_keys,
    runs_by_row,
)
from retrieval_bench.progress import logger
from retrieval_bench.records import Record, ResultsFolder
from retrieval_bench.report.gallery import gallery_of
from retrieval_bench.report.verdict import verdict
from retrieval_bench.tables import TextTable

MAP_POINTS = 400
"""Points of an embedding map, which would otherwise be most of a page."""
FRAME, ROW, IMAGE = 60_000, 700, 400
"""Bytes at most of the page without its content, of a row with what unfolds below it, and around an image."""
KINDS = {
    "tradeoff": "accuracy against cost",
    "pruning": "pruning",
    "losses": "learning curves",
    "variation": "weight variation and learning rates",
    "routes": "routes",
}
"""Groups of figures, by the first word of their names."""


class Budget:
    """Bytes that are still free on the page."""

    def __init__(self, free: int):
        self.free = free
        self.refused = 0

    def take(self, size: int) -> bool:
        """Whether so many bytes fit, which are then taken; refusals are counted."""
        if size > self.free:
            self.refused += 1
            return False
        self.free -= size
        return True


def write_report(results: ResultsFolder, output: Path, title: str, megabytes: float) -> dict[str, int]:
    """Writes the page, atomically.

    Args:
        results: with records and, for galleries, details.
        output: the file.
        title: of the page.
        megabytes: size that galleries (and figures of single runs) may fill the page up to, 10^6 bytes; best rows come
            first.

    Returns:
        how many ``configurations``, ``figures``, ``galleries`` and ``left_out`` (of both, since they did not fit) there
        are, and the page's ``bytes``.

    Raises:
        UserError: no record.
    """
    records = results.require_records()
    table, runs = leaderboard(records), runs_by_row(records)
    budget = Budget(int(megabytes * 1e6) - FRAME)
    figures = defaultdict(list)
    for figure in figures_of(records):
        figures[figure.protocol].append(figure)
    parts = []
    for number, (name, rows) in enumerate(protocols(table), 1):
        budget.free -= ROW * len(rows)
        labelled = rows.assign(strategy=distinct_labels(rows))
        parts.append(
            {
                "id": f"protocol-{number}",
                "verdict": verdict(labelled),
                "table": TextTable(name, readable(rows), list(rows["significance"])),
                "figures": _figures(figures[name], budget),
                "runs": [
                    _runs(runs[key], label) for key, label in zip(row_keys(rows), labelled["strategy"], strict=True)
                ],
            }
        )
    pictures: dict[bytes, int] = {}
    for row in (row for part in parts for row in part["runs"]):
        row["gallery"] = _gallery(row["records"], row["label"], results, pictures, budget)
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page = environment.get_template("page.html").render(
        title=title,
        legend=LEGEND,
        count=len(records),
        protocols=parts,
        reported=reported_tables(table["dataset"].unique()),
        kinds=KINDS,
        thumbnails=_json([base64.b64encode(picture).decode("ascii") for picture in pictures]),
        style=(here / "page.css").read_text(encoding="utf-8"),
        script=(here / "page.js").read_text(encoding="utf-8"),
    )
    write_text(output, page)
    return {
        "configurations": len(table),
        "figures": sum(len(drawn) for part in parts for drawn in part["figures"].values()),
        "galleries": sum(row["gallery"] is not None for part in parts for row in part["runs"]),
        "left_out": budget.refused,
        "bytes": len(page.encode()),
    }


def _figures(figures: Iterable[NamedFigure], budget: Budget) -> dict[str, list[dict[str, str]]]:
    """The figures of a protocol that fit, by kind."""
    drawn: dict[str, list[dict[str, str]]] = {kind: [] for kind in KINDS}
    for figure in figures:
        svg = figure.plot.svg()
        if budget.take(len(svg)):
            kind = figure.name.split("-", 1)[0]
            drawn[kind].append({"title": figure.plot.title, "summary": figure.plot.summary, "svg": svg})
    return {kind: shown for kind, shown in drawn.items() if shown}


def _runs(records: Sequence[Record], label: str) -> dict[str, Any]:
    """A configuration's runs for the template."""
    recalls = [(record.seed, column("recall_at_1").text(record.metrics.get("recall_at_1"))) for record in records]
    failed = [record.seed for record in records if record.training.get("converged") is False]
    return {"label": label, "records": records, "recalls": recalls, "not_converged": failed}


def _gallery(
    records: Sequence[Record], label: str, results: ResultsFolder, pictures: dict[bytes, int], budget: Budget
) -> dict[str, Any] | None:
    """The gallery of a configuration's first run with readable details, and its map; None without details or where it
    does not fit. Its pictures are added to those of the page."""
    for record in records:
        if (details := _read(results.details(record.id))) is not None:
            break
    else:
        return None
    some = slice(None, None, max(1, len(details.map_images) // MAP_POINTS))
    labels = details.labels[details.map_images[some]]
    names = [str(name) for name in details.class_names[np.unique(labels)]]
    title = f"test images by the first two principal components of their embeddings: {label}"
    plot = embedding_map(details.map[some], labels, names, title).svg()
    with_new = dict(pictures)
    gallery = gallery_of(details, with_new)
    images = sum(1 + len(query["neighbours"]) for query in gallery["queries"]) + 2 * len(gallery["pairs"])
    added = sum(len(picture) * 4 // 3 + 32 for picture in list(with_new)[len(pictures) :])
    if not budget.take(added + len(plot) + len(json.dumps(gallery)) + IMAGE * images):
        return None
    pictures.update(with_new)
    return gallery | {"run": record.id, "map": plot, "title": title}


def _read(path: Path) -> Details | None:
    """The details, if they are there; damaged ones are named."""
    if not path.exists():
        return None
    try:
        return read_details(path)
    except UserError as error:
        logger.info(f"skipped {error}")
        return None


def _json(value: Any) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
