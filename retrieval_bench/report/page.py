"""Records to one self-contained HTML page: tables, figures and galleries, with nothing to load from elsewhere."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from retrieval_bench.columns import COLUMNS, column
from retrieval_bench.details import Details, read_details
from retrieval_bench.errors import UserError
from retrieval_bench.evaluation.statistics import SEEDS
from retrieval_bench.figures.elsewhere import price_of_tuning
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
from retrieval_bench.tables import TextTable

MAP_POINTS = 400
"""Points of an embedding map, which would otherwise be most of a page."""
FRAME, ROW, IMAGE = 60_000, 700, 400
"""Bytes at most of the page without its content, of a row with what unfolds below it, and around an image."""
KINDS = {
    "tradeoff": "accuracy against cost",
    "elsewhere": "gain at home, change elsewhere",
    "pruning": "pruning",
    "losses": "learning curves",
    "variation": "weight variation and learning rates",
    "routes": "routes",
}
"""Groups of figures, by the first word of their names."""

CHEAPER = {"macs": "is the smallest network", "images_seen": "took the least training"}
"""What the row that costs least is, by cost."""
NAMED = 4
"""Ties that are named."""


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
    parts = []
    for number, (name, rows) in enumerate(protocols(table), 1):
        budget.free -= ROW * len(rows)
        labels = distinct_labels(rows)
        part = {
            "id": f"protocol-{number}",
            "verdict": verdict(rows.assign(strategy=labels)),
            "table": TextTable(name, readable(rows), list(rows["significance"])),
            "figures": _figures(figures[name], budget),
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
        legend=LEGEND,
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
        "figures": sum(len(drawn) for part in parts for drawn in part["figures"].values()),
        "galleries": sum(row["gallery"] is not None for part in parts for row in part["runs"]),
        "left_out": budget.refused,
        "bytes": len(page.encode()),
    }


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
    return gallery | {"run": run, "map": plot, "title": title}


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


def verdict(rows: Any) -> list[str]:
    """Sentences about the rows of one protocol, best Recall@1 first: which leads, by how much over common seeds, how
    sure that is, which of its ties cost less, and what gains cost on other data sets. The first sentence can stand
    alone."""
    recall = column("recall_at_1")
    measured = rows[rows["recall_at_1"].notna()] if "recall_at_1" in rows else rows[:0]
    if not len(measured):
        return ["R@1 was not measured."]
    best = measured[measured["significance"] == "best"]
    if not len(best):
        first = measured.iloc[0]
        highest = f"{recall.text(first['recall_at_1'])} ({first['strategy']})"
        unranked = f"Not ranked, since no row has {SEEDS} seeds; the highest R@1 is {highest}."
        return list(filter(None, [unranked, price_of_tuning(measured)]))
    leader = best.iloc[0]
    mean = recall.text(leader["recall_at_1"], leader["recall_at_1_ci95"])
    sentences = [f"{leader['strategy']} leads with R@1 {mean} ({leader['seeds']} seeds)."]
    ties = measured[measured["significance"] == "tie"]
    if len(ties):
        more = f" and {len(ties) - NAMED} more" if len(ties) > NAMED else ""
        sentences.append(f"Not significantly different from it: {', '.join(ties['strategy'].head(NAMED))}{more}.")
    for cost, is_cheapest in CHEAPER.items():
        known = ties[ties[cost].notna()]
        if len(known) and pd.notna(leader[cost]):
            cheapest = known.loc[known[cost].astype(float).idxmin()]
            share = cheapest[cost] / leader[cost] if leader[cost] else 1
            if share < 0.99:
                amount = f"{COLUMNS[cost].text(cheapest[cost])} {COLUMNS[cost].title}, {100 * share:.0f} %"
                sentences.append(f"Of these, {cheapest['strategy']} {is_cheapest}: {amount} of the leader's.")
    worse = measured[(measured["significance"] == "") & measured["p_value"].notna()]
    if len(worse):
        below = worse.iloc[0]
        begin = "The first that is significantly worse" if len(ties) else "Next"
        gap = f"{recall.text(-below['difference'])} points below over common seeds (p = {below['p_value']:.3f})"
        sentences.append(f"{begin}: {below['strategy']}, {gap}.")
    untested = int((measured["p_value"].isna() & (measured["significance"] == "")).sum())
    if untested:
        sentences.append(f"Not tested, since too few seeds are common: {untested} row{'' if untested == 1 else 's'}.")
    return list(filter(None, [*sentences, price_of_tuning(measured)]))
