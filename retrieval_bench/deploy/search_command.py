"""The command that searches. It loads torch only where it needs it: not with ``--onnx``."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from retrieval_bench.data.sheet import write_sheet
from retrieval_bench.deploy.onnx_embedder import open_graph
from retrieval_bench.deploy.search import collection_of, nearest, open_index, query_files
from retrieval_bench.deploy.sheets import check_images, draw_neighbours, neighbours_page
from retrieval_bench.errors import UserError
from retrieval_bench.files import check_writable, write_text
from retrieval_bench.progress import logger

Run = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
Results = Annotated[Path, tyro.conf.arg(help="folder that holds runs/ and models/")]
Device = Annotated[Literal["auto", "cpu", "cuda"], tyro.conf.arg(help="auto takes a GPU when there is one")]


@dataclass(frozen=True)
class Search:
    """Find the images of an embedded folder that are nearest to query images."""

    run: Run
    """id of a record in --results, or its beginning, as far as it is unique; an exported folder; or hf:OWNER/NAME. With
    --onnx there is no RUN, and the first QUERY stands here"""
    queries: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="QUERY")]
    """image files, or folders of them"""
    gallery: Path
    """what `embed` wrote with the same embedder"""
    k: int = 10
    """how many neighbours"""
    keep_query: bool = False
    """a query that is in the gallery itself (the same bytes, or the same file below --folder) is among its neighbours;
    otherwise it is left out"""
    json: bool = False
    """print JSON"""
    sheet: Path | None = None
    """also draw the queries and their neighbours (PNG)"""
    html: Path | None = None
    """also write queries and neighbours as one HTML page that holds its pictures"""
    folder: Path | None = None
    """the folder that was embedded; for --sheet and --html the folder of --gallery by default"""
    onnx: Path | None = None
    """graph that `export` made of the embedder; takes the place of RUN, and needs no torch"""
    results: Results = Path("results/local")
    device: Device = "auto"

    def execute(self) -> None:
        given = (Path(self.run), *self.queries) if self.onnx else self.queries
        if self.k < 1 or not given:
            raise UserError(f"--k {self.k}: at least 1" if self.k < 1 else "give one image file or more to search for")
        if self.onnx and not Path(self.run).exists():
            raise UserError(f"{self.run}: no such image file or folder (with --onnx, no RUN is given)")
        files = query_files(given)
        for flag, output, ending in (("--sheet", self.sheet, ".png"), ("--html", self.html, ".html")):
            if output:
                if output.suffix.lower() != ending:
                    raise UserError(f"{output}: {flag} names a file that ends in {ending}")
                check_writable(output.parent, flag)
        if self.onnx:
            digest, embed_files = open_graph(self.onnx)
        else:
            with_torch = importlib.import_module("retrieval_bench.deploy.embedding")
            digest, embed_files = with_torch.embedder_of(self.run, self.results, self.device)
        collection = collection_of(self.gallery, digest, str(self.onnx or self.run))
        own = collection.rows_of(files, self.folder)
        if not (self.keep_query or self.folder or collection.digests.all()):
            logger.info(
                f"{self.gallery}: is of an older version: queries that it holds are left out with --folder only"
            )
        left_out = [rows[:0] if self.keep_query else rows for rows in own]
        queries = embed_files(files)
        neighbours = nearest(open_index(collection, self.gallery), collection, queries, self.k, left_out)
        if self.sheet or self.html:
            folder = self.folder or self.gallery.parent
            check_images(neighbours, folder)
            if self.sheet:
                write_sheet(draw_neighbours(files, neighbours, folder), self.sheet)
            if self.html:
                labels = [str(collection.labels[rows[0]]) if len(rows) else "" for rows in own]
                page = neighbours_page(files, labels, neighbours, folder, f"Search in {self.gallery.name}")
                write_text(self.html, page)
        answers = list(zip(map(str, files), neighbours, left_out, strict=True))
        if self.json:
            names = ("query", "neighbours", "left_out")
            shown = [(query, [n._asdict() for n in row], collection.paths[own].tolist()) for query, row, own in answers]
            print(json.dumps([dict(zip(names, answer, strict=True)) for answer in shown]))
            return
        for query, row, rows in answers:
            print(query + (f" (left out: {', '.join(collection.paths[rows])})" if len(rows) else ""))
            width = max((len(near.label) for near in row), default=0)
            for near in row:
                print(f"{near.rank:>5}  {near.similarity:.4f}  {near.label:{width}}  {near.path}")
