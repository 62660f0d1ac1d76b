"""Records to one self-contained HTML page: tables, figures and galleries, with nothing to load from elsewhere."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from retrieval_bench.details import Details, details_path, read_details
from retrieval_bench.errors import UserError
from retrieval_bench.figures.canvas import svg_text
from retrieval_bench.figures.embedding import embedding_map
from retrieval_bench.figures.gallery import Shown, gallery, told_apart
from retrieval_bench.files import write_text
from retrieval_bench.leaderboard import PROTOCOL, build_table, row_keys, runs_by_row
from retrieval_bench.progress import logger
from retrieval_bench.records import read_records
from retrieval_bench.report.gallery import Thumbnails, gallery_of
from retrieval_bench.report.verdict import verdict
from retrieval_bench.tables import LEGEND, Section, percent, quoted_sections, sections

HERE = Path(__file__).parent
MAPPED = 400
"""Points of an embedding map, which would otherwise be most of a page."""
IMAGE_MARKUP = 400
"""Bytes around an image of a gallery, at most."""
KINDS = {
    "tradeoff": "accuracy against cost",
    "pruning": "pruning",
    "losses": "learning curves",
    "variation": "weight variation and learning rates",
    "routes": "routes",
}
"""Groups of figures, by the first word of their names."""
Record = dict[str, Any]


def write_report(results: Path, output: Path, title: str, megabytes: float) -> dict[str, int]:
    """Writes the page, atomically.

    Args:
        results: folder that holds ``runs/`` and, for galleries, ``details/``.
        output: the file.
        title: of the page.
        megabytes: size that galleries (and figures of single runs) may fill the page up to, 10^6 bytes; best rows come first.

    Returns:
        how many ``configurations``, ``figures``, ``galleries`` and ``left_out`` (for want of room) there are, and the page's ``bytes``.

    Raises:
        UserError: no record.
    """
    records = list(read_records(results))
    if not records:
        raise UserError(f"{results}: no records in runs/; `make bench` makes the first ones")
    table = build_table(records)
    runs = runs_by_row(records)
    room = Room(int(megabytes * 1e6) - 60_000)
    figures = defaultdict(list)
    for shown in gallery(records):
        figures[shown.protocol].append(shown)
    groups: Any = table.groupby(list(PROTOCOL), sort=False, dropna=False)
    pairs = list(zip(sections(table), (rows for _, rows in groups), strict=True))
    protocols = [
        _protocol(number, section, told_apart(rows), runs, figures[section.title], room)
        for number, (section, rows) in enumerate(pairs)
    ]
    thumbnails = Thumbnails()
    for protocol in protocols:
        for run in protocol["runs"]:
            run["gallery"], thumbnails = _gallery(run, results, thumbnails, room)
    page = (
        _environment()
        .get_template("page.html")
        .render(
            title=title,
            legend=LEGEND,
            count=len(records),
            protocols=protocols,
            quoted=[_shown(section) for section in quoted_sections(table["dataset"].unique())],
            kinds=KINDS,
            thumbnails=_script(thumbnails.encoded()),
            style=(HERE / "page.css").read_text(encoding="utf-8"),
            script=(HERE / "page.js").read_text(encoding="utf-8"),
        )
    )
    write_text(output, page)
    galleries = sum(run["gallery"] is not None for protocol in protocols for run in protocol["runs"])
    drawn = sum(len(pictures) for protocol in protocols for pictures in protocol["figures"].values())
    counts = {"configurations": len(table), "figures": drawn, "galleries": galleries, "left_out": room.refused}
    return counts | {"bytes": len(page.encode())}


class Room:
    """Bytes that are still free on the page."""

    def __init__(self, free: int):
        self.free = free
        self.refused = 0

    def take(self, size: int) -> bool:
        """Whether so many bytes fit, which they then do; refusals are counted."""
        if size > self.free:
            self.refused += 1
            return False
        self.free -= size
        return True


def _protocol(
    number: int,
    section: Section,
    rows: Any,
    runs: dict[tuple[str, str], list[Record]],
    figures: list[Shown],
    room: Room,
) -> dict[str, Any]:
    """What the template shows of one protocol."""
    room.free -= 700 * len(rows)  # cells, and what unfolds below them
    drawn: dict[str, list[dict[str, str]]] = {kind: [] for kind in KINDS}
    for shown in figures:
        svg = svg_text(shown.picture)
        if room.take(len(svg)):
            drawn[shown.name.split("-", 1)[0]].append(
                {"title": shown.picture.title, "text": shown.picture.text, "svg": svg}
            )
    return {
        "id": f"protocol-{number + 1}",
        "title": section.title,
        "verdict": verdict(rows),
        "table": _shown(section),
        "figures": {kind: pictures for kind, pictures in drawn.items() if pictures},
        "runs": [_run(runs[key], label) for key, label in zip(row_keys(rows), rows["strategy"], strict=True)],
    }


def _shown(section: Section) -> dict[str, Any]:
    """A table for the template."""
    ranked = next((name for name in section.shown.columns if name.startswith("R@")), "")
    standing = list(section.standing) or [""] * len(section.shown)
    rows = [
        {"cells": row, "standing": mark} for row, mark in zip(section.shown.to_numpy().tolist(), standing, strict=True)
    ]
    return {"title": section.title, "columns": list(section.shown.columns), "ranked": ranked, "rows": rows}


def _run(records: list[Record], label: str) -> dict[str, Any]:
    """A configuration's runs for the template."""
    seeds = [
        {"id": record["id"], "seed": record["seed"], "recall": percent(record["metrics"].get("recall_at_1"))}
        for record in records
    ]
    first = records[0]
    converged = [record["seed"] for record in records if record.get("training", {}).get("converged") is False]
    return {"label": label, "command": first.get("command", ""), "seeds": seeds, "not_converged": converged}


def _gallery(
    run: dict[str, Any], results: Path, thumbnails: Thumbnails, room: Room
) -> tuple[dict[str, Any] | None, Thumbnails]:
    """The gallery of a configuration's first run with readable details, and its map, None without details or room; and all thumbnails."""
    path, details = _first_details([details_path(results, seed["id"]) for seed in run["seeds"]])
    if details is None:
        return None, thumbnails
    some = slice(None, None, max(1, len(details.mapped) // MAPPED))
    labels = details.labels[details.mapped[some]]
    title = f"test images by the first two principal components of their embeddings: {run['label']}"
    drawn = svg_text(embedding_map(details.map[some], labels, [str(name) for name in details.class_names], title))
    more = thumbnails.copy()
    found = gallery_of(details, more)
    images = sum(1 + len(query["neighbours"]) for query in found["queries"]) + 2 * len(found["pairs"])
    if not room.take(more.size - thumbnails.size + len(drawn) + len(json.dumps(found)) + IMAGE_MARKUP * images):
        return None, thumbnails
    return found | {"run": path.stem, "map": drawn, "title": title}, more


def _first_details(paths: list[Path]) -> tuple[Path, Details | None]:
    """The first of the files that can be read; those that are damaged are named."""
    for path in filter(Path.exists, paths):
        try:
            return path, read_details(path)
        except UserError as error:
            logger.info(f"skipped {error}")
    return paths[0], None


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _script(value: Any) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
