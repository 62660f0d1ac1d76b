"""The commands that put a trained embedder to use: take it away, embed one's own images with it, search in them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from retrieval_bench.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from retrieval_bench.data.table import ImageTable
    from retrieval_bench.deploy.runs import Found

Run = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
Output = tyro.conf.arg(aliases=["-o"])


@dataclass(frozen=True)
class Export:
    """Write the trained embedder of a run into a folder: safetensors, recipe, ONNX graph and a card."""

    run: Run
    """id of a record below --results, or its beginning, as far as it is unique"""
    output: Annotated[Path | None, Output] = None
    """folder to be made; without, exported/<id> below --results"""
    results: Path = Path("results/local")
    """folder that holds runs/ and models/"""

    def execute(self) -> None:
        from retrieval_bench.deploy.export import export
        from retrieval_bench.deploy.runs import find_embedder

        found = find_embedder(self.run, self.results)
        target = self.output.expanduser() if self.output else self.results / "exported" / found.path.name
        graph = export(found, target)
        if graph.difference is None:
            print(f"{target}: weights, recipe and card; no ONNX graph: {graph.missing}")
        else:
            print(
                f"{target}: weights, recipe, card and ONNX graph, which differs from torch by at most {graph.difference:.1e}"
            )


@dataclass(frozen=True)
class Chosen:
    """An embedder, and how it is run."""

    run: Run
    """id of a record below --results, or its beginning, as far as it is unique; or an exported folder"""

    def _embed(self, found: Found, table: ImageTable, device: str, workers: int, batch_size: int) -> np.ndarray:
        from retrieval_bench.data.loading import resolve_workers
        from retrieval_bench.deploy.images import embed_table
        from retrieval_bench.deploy.saved import load_embedder
        from retrieval_bench.device import resolve_device

        device = resolve_device(device)
        embedder, recipe = load_embedder(found.path)
        return embed_table(embedder.to(device), recipe, table, batch_size, resolve_workers(workers, device))


@dataclass(frozen=True)
class Embed(Chosen):
    """Embed all images below a folder with the embedder of a run; `search` finds them, `evaluate` measures them."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """images at any depth; the first folder on an image's path is its label"""
    output: Annotated[Path, Output]
    """the .npz file; a FAISS index is saved beside it as .faiss"""
    index: Literal["flat", "hnsw", "ivf"] = "flat"
    """flat is exact; hnsw and ivf are approximate, for millions of images"""
    skip_unreadable: bool = False
    """leave out images that cannot be decoded, with a line each (all are decoded twice)"""
    results: Path = Path("results/local")
    """folder that holds runs/ and models/"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU when there is one"""
    workers: int = -1
    """processes that decode images; -1 means none on a CPU, up to 8 beside a GPU"""
    batch_size: int = 64
    """images that pass through the network at a time"""

    def execute(self) -> None:
        import numpy as np

        from retrieval_bench.deploy.collection import Collection, index_path, write_index
        from retrieval_bench.deploy.images import images_below
        from retrieval_bench.deploy.runs import find_embedder
        from retrieval_bench.deploy.saved import embedder_digest
        from retrieval_bench.files import check_writable

        output = self.output.expanduser()
        if output.suffix != ".npz" or output.is_dir():
            raise UserError(f"{self.output}: name a file that ends in .npz")
        if self.batch_size < 1:
            raise UserError(f"--batch-size {self.batch_size}: at least 1")
        found = find_embedder(self.run, self.results)
        table = images_below(self.folder.expanduser(), self.skip_unreadable)
        check_writable(output.parent, "--output")
        try:
            embeddings = self._embed(found, table, self.device, self.workers, self.batch_size)
        except UserError as error:
            way_out = ", or give --skip-unreadable" if "cannot be decoded" in str(error) else ""
            raise UserError(f"{error}{way_out}") from None
        labels = np.array([table.class_names[label] for label in table.labels])
        collection = Collection(embeddings, labels, np.array(table.paths), embedder_digest(found.path))
        collection.write(output)
        write_index(collection, output, self.index)
        count, size = embeddings.shape
        print(
            f"{output}: {count:,} images, {size} dimensions, {len(table.class_names):,} labels; {self.index} index in {index_path(output)}"
        )


@dataclass(frozen=True)
class Search(Chosen):
    """Find the images of an embedded folder that are nearest to query images."""

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
    """of --sheet: the folder that was embedded; without, the one that --gallery lies in"""
    results: Path = Path("results/local")
    """folder that holds runs/ and models/"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU when there is one"""

    def execute(self) -> None:
        from retrieval_bench.data.sheet import write_sheet
        from retrieval_bench.deploy.collection import open_index, read_collection
        from retrieval_bench.deploy.runs import find_embedder
        from retrieval_bench.deploy.saved import embedder_digest
        from retrieval_bench.deploy.search import draw_neighbours, nearest, table_of
        from retrieval_bench.files import check_writable

        if self.k < 1 or not self.queries:
            raise UserError(f"--k {self.k}: at least 1" if self.k < 1 else "give one image file or more to search for")
        found, gallery = find_embedder(self.run, self.results), self.gallery.expanduser()
        collection = read_collection(gallery)
        if collection.embedder != embedder_digest(found.path):
            raise UserError(
                f"{gallery}: was made with another embedder than {self.run}; embed its images with this one, or name that one"
            )
        if self.sheet:
            if self.sheet.suffix.lower() != ".png":
                raise UserError(f"{self.sheet}: a sheet is written as .png")
            check_writable(self.sheet.expanduser().parent, "--sheet")
        queries = self._embed(found, table_of(self.queries), self.device, 0, 64)
        neighbours = nearest(open_index(collection, gallery), collection, queries, self.k)
        if self.sheet:
            folder = self.folder.expanduser() if self.folder else gallery.parent
            write_sheet(draw_neighbours(self.queries, neighbours, folder), self.sheet.expanduser())
        print(json.dumps(_plain(self.queries, neighbours)) if self.json else _listed(self.queries, neighbours))


def _plain(queries: tuple[Path, ...], found: list[list[Any]]) -> list[dict[str, Any]]:
    return [
        {"query": str(query), "neighbours": [neighbour._asdict() for neighbour in row]}
        for query, row in zip(queries, found, strict=True)
    ]


def _listed(queries: tuple[Path, ...], found: list[list[Any]]) -> str:
    """A line per neighbour below each query's name: rank, similarity, label, path."""
    lines = []
    for query, row in zip(queries, found, strict=True):
        width = max((len(neighbour.label) for neighbour in row), default=0)
        lines.append(str(query))
        lines += [f"{n.rank:>5}  {n.similarity:.4f}  {n.label:{width}}  {n.path}" for n in row]
    return "\n".join(lines)
