"""The commands that put a trained embedder to use: export it, and embed images of your own with it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import tyro

from retrieval_bench.deploy import hub, search
from retrieval_bench.deploy.embedding import embed_table
from retrieval_bench.deploy.export import CARD, export
from retrieval_bench.deploy.saved import NAME, embedder_digest, find_embedder
from retrieval_bench.deploy.search_command import Device, Results, Run
from retrieval_bench.errors import UserError
from retrieval_bench.files import check_writable, locked

Output = tyro.conf.arg(aliases=["-o"])
FILES = (CARD, *(f"{NAME}.{ending}" for ending in ("json", "safetensors", "onnx")))
"""What is uploaded of an exported folder, and nothing else that may lie there."""
Licence = Annotated[str, tyro.conf.arg(help="of the weights, as the Hugging Face Hub names licences (apache-2.0)")]


@dataclass(frozen=True)
class Export:
    """Write the trained embedder of a run into a folder: safetensors, recipe, ONNX graph and a card."""

    run: Run
    """id of a record in --results, or its beginning, as far as it is unique"""
    output: Annotated[Path | None, Output] = None
    """new folder; exported/<id> in --results by default"""
    license: Licence = "other"
    results: Results = Path("results/local")

    def execute(self) -> None:
        path, record = find_embedder(self.run, self.results)
        if record is None:
            raise UserError(f"{self.run}: is an exported folder already; export takes the id of a run")
        target = self.output or self.results / "exported" / path.name
        graph = export(path, record, target, self.license)
        if graph.difference is None:
            print(f"{target}: weights, recipe and card; no ONNX graph: {graph.missing}")
        else:
            differs = f"which differs from torch by at most {graph.difference:.1e}"
            print(f"{target}: weights, recipe, card and ONNX graph, {differs}")


@dataclass(frozen=True)
class Push:
    """Upload the trained embedder of a run to the Hugging Face Hub: safetensors, recipe and card."""

    run: Run
    """id of a record in --results, or its beginning, as far as it is unique; or an exported folder"""
    repo: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")]
    """of the repository, which is made if there is none; `load_embedder("hf:OWNER/NAME")` loads from it"""
    onnx: bool = False
    """also make and upload the ONNX graph (that of an exported folder is uploaded if it has one)"""
    private: bool = False
    """only you see the repository; one that is public already is refused"""
    license: Licence = "other"
    results: Results = Path("results/local")

    def execute(self) -> None:
        hub.check_login(self.repo)
        path, record = find_embedder(self.run, self.results)
        with TemporaryDirectory() as temporary:
            folder = path.parent
            if record:
                folder = Path(temporary) / "export"
                export(path, record, folder, self.license, self.onnx)
            elif path.name != NAME or not (folder / CARD).is_file():
                raise UserError(f"{self.run}: has no {CARD}; push takes the id of a run, or an exported folder")
            if self.onnx and not (folder / f"{NAME}.onnx").is_file():
                raise UserError(f"{self.run}: has no ONNX graph (`export` says why); push it without --onnx")
            files = [name for name in FILES if (folder / name).is_file()]
            address = hub.upload(folder, files, self.repo, self.private)
        print(f"{address}: {', '.join(files)}")


@dataclass(frozen=True)
class Embed:
    """Embed all images below a folder with the embedder of a run; `search` finds them, `evaluate` measures them."""

    run: Run
    """id of a record in --results, or its beginning, as far as it is unique; an exported folder; or hf:OWNER/NAME"""
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """images at any depth; the first folder on an image's path is its label"""
    output: Annotated[Path, Output]
    """the .npz file; a FAISS index is saved beside it as .faiss"""
    add: bool = False
    """add the images that --output does not hold yet, by their content; its index keeps its kind"""
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
        with locked(output, f"adding to {output}", "--output") if self.add else nullcontext():
            self._embed(output)

    def _embed(self, output: Path) -> None:
        path, _ = find_embedder(self.run, self.results)
        embedder = embedder_digest(path)
        known = search.collection_of(output, embedder, self.run) if self.add else None
        table = search.images_below(self.folder, self.skip_unreadable, known)
        if not len(table):
            print(f"{output}: holds all images below {self.folder} already; nothing is changed")
            return
        check_writable(output.parent, "--output")
        try:
            collection = embed_table(path, table, output, self.index, self.device, self.workers, self.batch_size, known)
        except UserError as error:
            way_out = ", or give --skip-unreadable" if "cannot be decoded" in str(error) else ""
            raise UserError(f"{error}{way_out}") from None
        added = f"{len(table):,} images added: " if known else ""
        (count, size), labels = collection.embeddings.shape, collection.labels
        classes, loose = len(np.unique(labels[labels != ""])), int((labels == "").sum())
        print(
            f"{output}: {added}{count:,} images, {size} dimensions, {classes:,} labels"
            f"{f' ({loose:,} in no class folder have none; evaluate needs one)' if loose else ''}; "
            f"{'' if known else f'{self.index} '}index in {output.with_suffix('.faiss')}"
        )
