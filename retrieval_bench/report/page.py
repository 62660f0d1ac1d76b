"""Records to one self-contained HTML page: tables, figures and galleries, with nothing to load from elsewhere."""

from __future__ import annotations

import base64
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from retrieval_bench.answer import LEGEND_OF_WORDS, Answer, answers, cheaper, headlines, strategy_name, verdicts
from retrieval_bench.columns import column
from retrieval_bench.details import Details, read_details
from retrieval_bench.errors import UserError
from retrieval_bench.figures.elsewhere import price_of_tuning
from retrieval_bench.figures.embedding_map import embedding_map
from retrieval_bench.figures.gallery import NamedFigure, figures_of
from retrieval_bench.files import write_text
from retrieval_bench.leaderboard import (
    choice_columns,
    distinct_labels,
    leaderboard,
    plain_text,
    protocols,
    readable,
    reported_tables,
    row_keys,
    runs_by_row,
)
from retrieval_bench.progress import logger
from retrieval_bench.records import Record, ResultsFolder

MAP_POINTS = 400
"""Points of an embedding map, which would otherwise be most of a page."""
FRAME, ROW, IMAGE = 60_000, 700, 400
"""Bytes at most of the page without its content, of a row with what unfolds below it, and around an image."""
ABOUT = ("loss", "epochs", "optimizer", "lr", "batch_size", "dim", "device")
"""Choices that are named above a table where all its rows share them."""
KINDS = {
    "forest": "strategies in order",
    "tradeoff": "accuracy against cost",
    "elsewhere": "gain at home, change elsewhere",
    "pruning": "pruning",
    "losses": "learning curves",
    "variation": "weight variation and learning rates",
    "routes": "routes",
}
"""Groups of figures, by the first word of their names."""


@dataclass
class PageBudget:
    """Bytes that are still free on the page, and how often something did not fit."""

    free: int
    refused: int = 0

    def take(self, size: int) -> bool:
        """Whether so many bytes fit, which are then taken."""
        fits = size <= self.free
        self.free -= size if fits else 0
        self.refused += not fits
        return fits


def write_report(results: ResultsFolder, output: Path, title: str, megabytes: float) -> dict[str, int]:
    """Writes the page, atomically, with figures and galleries of the best rows first as far as 10^6 `megabytes` bytes
    go; raises :class:`UserError` without a record.

    Returns:
        how many ``configurations``, ``figures``, ``galleries`` and ``left_out`` (of both) there are, and the ``bytes``.
    """
    records = results.require_records()
    table, runs = leaderboard(records), runs_by_row(records)
    budget = PageBudget(int(megabytes * 1e6) - FRAME)
    figures = defaultdict(list)
    for figure in figures_of(records):
        figures[figure.protocol].append(figure)
    found = answers(table, runs)
    first = headlines(found)
    rows_of = dict(protocols(table))
    parts = []
    for number, answer in enumerate(sorted(found, key=lambda answer: (not answer.ranked, answer not in first)), 1):
        rows, labels = rows_of[answer.title], distinct_labels(rows_of[answer.title])
        budget.free -= ROW * len(rows)
        drawn = _figures(figures[answer.title], budget)
        part = {
            "id": f"protocol-{number}",
            "answer": answer,
            "is_first": answer in first,
            "forest": drawn.pop("forest", [None])[0],
            "verdict": [*cheaper(answer.rows), price_of_tuning(rows)],
            "table": table_of(rows, answer),
            "figures": drawn,
            "runs": [_runs(runs[key], label) for key, label in zip(row_keys(rows), labels, strict=True)],
        }
        parts.append(part)
    pictures: dict[bytes, int] = {}
    for row in (row for part in parts for row in part["runs"]):
        row["gallery"] = _gallery(row["records"], row["label"], results, pictures, budget)
    here = Path(__file__).parent
    blocks: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = Environment(loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, **blocks)
    in_base64 = json.dumps([base64.b64encode(picture).decode("ascii") for picture in pictures], separators=(",", ":"))
    page = environment.get_template("page.html").render(
        title=title,
        about=LEGEND_OF_WORDS,
        count=len(records),
        protocols=parts,
        reported=reported_tables(table["dataset"].unique()),
        kinds=KINDS,
        thumbnails=in_base64,
        style=(here / "page.css").read_text(encoding="utf-8"),
        script=(here / "page.js").read_text(encoding="utf-8"),
    )
    write_text(output, page)
    return {
        "configurations": len(table),
        "figures": sum(part["forest"] is not None for part in parts)
        + sum(len(drawn) for part in parts for drawn in part["figures"].values()),
        "galleries": sum(row["gallery"] is not None for part in parts for row in part["runs"]),
        "left_out": budget.refused,
        "bytes": len(page.encode()),
    }


def table_of(rows: Any, answer: Answer) -> dict[str, Any]:
    """The table of a protocol for the template.

    Returns:
        ``title``; ``columns``, each with ``name`` and ``kind`` (``strategy``, ``recall``, ``number``, or ``detail`` for
        choices); ``rows`` with ``cells``, ``options`` of the strategy, ``verdict`` and ``is_first`` (of its strategy);
        ``shared``, what is the same in all rows, in words; and ``differ``, the names of choices that are not.
    """
    cells: Any = readable(rows)
    choices = [name for name in ("loss", "epochs", *choice_columns(rows), "ms") if name in cells]
    trained = rows[rows["images_seen"].fillna(1) > 0]
    values = {name: list(dict.fromkeys(map(plain_text, trained[name].dropna()))) for name in ABOUT if name in trained}
    shared = {name: known[0] for name, known in values.items() if len(known) == 1}
    recall = [str(name) for name in cells if str(name).startswith("R@")][:1]
    details = [name for name in choices if name not in shared]
    numbers = [str(name) for name in cells if name not in ("strategy", *recall, *choices)]
    kinds = dict.fromkeys(["strategy"], "strategy") | dict.fromkeys(recall, "recall")
    kinds |= dict.fromkeys(numbers, "number") | dict.fromkeys(details, "detail")
    lines = []
    for index, verdict in verdicts(rows).items():
        label, *others = cells.loc[index, list(kinds)]
        options = "; ".join(re.findall(r"\(([^()]*)\)", label))
        line = {"cells": [strategy_name(label), *others], "options": f"({options})" if options else ""}
        lines.append(line | {"verdict": verdict, "is_first": index in answer.rows.index or not len(answer.rows)})
    columns = [{"name": name, "kind": kind} for name, kind in kinds.items()]
    words = ", ".join(f"{name} {value}" for name, value in shared.items())
    return {"title": answer.words, "columns": columns, "rows": lines, "shared": words, "differ": details}


def _figures(figures: Iterable[NamedFigure], budget: PageBudget) -> dict[str, list[dict[str, str]]]:
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
    records: Sequence[Record], label: str, results: ResultsFolder, pictures: dict[bytes, int], budget: PageBudget
) -> dict[str, Any] | None:
    """The gallery of a configuration's first run with readable details, and its map; None without details or where it
    does not fit. Its pictures are added to those of the page; damaged details are named."""
    details, run = None, ""
    for record in records:
        try:
            if (path := results.details(record.id)).exists():
                details, run = read_details(path), record.id
                break
        except UserError as error:
            logger.info(f"skipped {error}")
    if details is None:
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
    return gallery | {"run": run, "map": plot, "title": title, "has_pictures": bool(details.pictures())}


def gallery_of(details: Details, numbers: dict[bytes, int]) -> dict[str, Any]:
    """What a page shows of a run, whose pictures are added to the page's `numbers` of pictures.

    Returns:
        ``queries``: each with ``image``, ``rank`` of its best positive and ``neighbours`` (images, with ``right`` and
        ``similarity``); ``pairs``: each with ``query``, ``confused_with`` (images) and ``count``. An image is ``name``,
        ``path`` and ``thumbnail``, a number or None.
    """
    pictures, own = details.pictures(), details.queries[details.neighbour_queries]

    def image(row: int, **more: Any) -> dict[str, Any]:
        picture = pictures.get(int(row))
        number = numbers.setdefault(picture, len(numbers)) if picture else None
        name = str(details.class_names[details.labels[row]])
        return {"name": name, "path": str(details.paths[row]), "thumbnail": number, **more}

    def query(row: int) -> dict[str, Any]:
        near = [
            image(other, right=bool(details.labels[other] == details.labels[own[row]]), similarity=float(similarity))
            for other, similarity in zip(details.neighbours[row], details.similarity[row], strict=True)
            if other >= 0
        ]
        rank = details.first_rank[details.neighbour_queries[row]]
        return {"image": image(own[row]), "rank": int(rank), "neighbours": near}

    pairs = [
        {"query": image(own[row]), "confused_with": image(details.neighbours[row, 0]), "count": count}
        for _, _, count, row in details.confused_classes()
    ]
    return {"queries": [query(row) for row in details.gallery_queries()], "pairs": pairs}
