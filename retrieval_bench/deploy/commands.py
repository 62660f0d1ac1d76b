"""The commands that put a trained embedder to use: export it, embed images of your own with it, search in them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from retrieval_bench.data.sheet import write_sheet
from retrieval_bench.data.table import ImageTable
from retrieval_bench.deploy import search
from retrieval_bench.deploy.export import export
from retrieval_bench.deploy.saved import embedder_digest, find_embedder
from retrieval_bench.errors import UserError
from retrieval_bench.files import check_writable

Run = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
Output = tyro.conf.arg(aliases=["-o"])
Results = Annotated[Path, tyro.conf.arg(help="folder that holds runs/ and models/")]
Device = Annotated[Literal["auto", "cpu", "cuda"], tyro.conf.arg(help="auto takes a GPU when there is one")]


@dataclass(frozen=True)
class Export:
    """Write the trained embedder of a run into a folder: safetensors, recipe, ONNX graph and a card."""

    run: Run
    """id of a record in --results, or its beginning, as far as it is unique"""
    output: Annotated[Path | None, Output] = None
    """new folder; exported/<id> in --results by default"""
    results: Results = Path("results/local")

    def execute(self) -> None:
        path, record = find_embedder(self.run, self.results)
        if record is None:
            raise UserError(f"{self.run}: is an exported folder already; export takes the id of a run")
        target = self.output or self.results / "exported" / path.name
        graph = export(path, record, target)
        if graph.difference is None:
            print(f"{target}: weights, recipe and card; no ONNX graph: {graph.missing}")
        else:
            differs = f"which differs from torch by at most {graph.difference:.1e}"
            print(f"{target}: weights, recipe, card and ONNX graph, {differs}")


@dataclass(frozen=True)
class Embed:
    """Embed all images below a folder with the embedder of a run; `search` finds them, `evaluate` measures them."""

    run: Run
    """id of a record in --results, or its beginning, as far as it is unique; or an exported folder"""
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """images at any depth; the first folder on an image's path is its label"""
    output: Annotated[Path, Output]
    """the .npz file; a FAISS index is saved beside it as .faiss"""
    index: search.IndexKind = "flat"
    """flat is exact; hnsw and ivf are approximate, for millions of images"""
    skip_unreadable: bool = False
    """leave out images that cannot be decoded, with a line each (all are decoded twice)"""
    results: Results = Path("results/local")
    device: Device = "auto"
    workers: int = -1
    """processes that decode images; -1 means none on a CPU, up to 8 beside a GPU"""
    batch_size: int = 64
    """images that pass through the network at a time"""

    def execute(self) -> None:
        output = self.output
        if output.suffix != ".npz" or output.is_dir():
            raise UserError(f"{self.output}: name a file that ends in .npz")
        if self.batch_size < 1:
            raise UserError(f"--batch-size {self.batch_size}: at least 1")
        path, _ = find_embedder(self.run, self.results)
        table = search.images_below(self.folder, self.skip_unreadable)
        check_writable(output.parent, "--output")
        try:
            collection = search.embed_table(path, table, output, self.index, self.device, self.workers, self.batch_size)
        except UserError as error:
            way_out = ", or give --skip-unreadable" if "cannot be decoded" in str(error) else ""
            raise UserError(f"{error}{way_out}") from None
        (count, size), labels = collection.embeddings.shape, collection.labels
        classes, loose = len(np.unique(labels[labels != ""])), int((labels == "").sum())
        print(
            f"{output}: {count:,} images, {size} dimensions, {classes:,} labels"
            f"{f' ({loose:,} in no class folder have none; evaluate needs one)' if loose else ''}; "
            f"{self.index} index in {output.with_suffix('.faiss')}"
        )


@dataclass(frozen=True)
class Search:
    """Find the images of an embedded folder that are nearest to query images."""

    run: Run
    """id of a record in --results, or its beginning, as far as it is unique; or an exported folder"""
    queries: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="QUERY")]
    """image files"""
    gallery: Path
    """what `embed` wrote with the same embedder"""
    k: int = 10
    """how many neighbours"""
    json: bool = False
    """print JSON"""
    sheet: Path | None = None
    """also draw the queries and their neighbours (PNG)"""
    folder: Path | None = None
    """of --sheet: the folder that was embedded; the folder of --gallery by default"""
    results: Results = Path("results/local")
    device: Device = "auto"

    def execute(self) -> None:
        if self.k < 1 or not self.queries:
            raise UserError(f"--k {self.k}: at least 1" if self.k < 1 else "give one image file or more to search for")
        for query in self.queries:
            if not query.is_file():
                raise UserError(f"{query}: no such image file")
        (path, _), gallery = find_embedder(self.run, self.results), self.gallery
        collection = search.read_collection(gallery)
        if collection.embedder != embedder_digest(path):
            raise UserError(
                f"{gallery}: was made with another embedder than {self.run}; embed its images with this one, "
                "or name that one"
            )
        if self.sheet:
            if self.sheet.suffix.lower() != ".png":
                raise UserError(f"{self.sheet}: a sheet is written as .png")
            check_writable(self.sheet.parent, "--sheet")
        labels = np.zeros(len(self.queries), dtype=np.int64)
        table = ImageTable(Path(), tuple(map(str, self.queries)), labels, ("",))
        queries = search.embed_images(path, table, self.device)
        neighbours = search.nearest(search.open_index(collection, gallery), collection, queries, self.k)
        if self.sheet:
            folder = self.folder or gallery.parent
            write_sheet(search.draw_neighbours(self.queries, neighbours, folder), self.sheet)
        answers = list(zip(map(str, self.queries), neighbours, strict=True))
        if self.json:
            print(
                json.dumps([{"query": query, "neighbours": [near._asdict() for near in row]} for query, row in answers])
            )
            return
        for query, row in answers:
            print(query)
            width = max((len(near.label) for near in row), default=0)
            for near in row:
                print(f"{near.rank:>5}  {near.similarity:.4f}  {near.label:{width}}  {near.path}")
