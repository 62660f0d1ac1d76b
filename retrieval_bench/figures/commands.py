"""The commands that draw: all figures of a folder of records, and a map of embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from retrieval_bench.errors import UserError
from retrieval_bench.evaluation.files import read_embeddings
from retrieval_bench.figures.embedding_map import embedding_map, project
from retrieval_bench.figures.gallery import figures_of
from retrieval_bench.files import check_writable
from retrieval_bench.records import ResultsFolder

Output = Annotated[Path | None, tyro.conf.arg(aliases=["-o"])]
ENDINGS = (".png", ".svg")


@dataclass(frozen=True)
class Figures:
    """Draw every figure that the records give, each as SVG and as PNG."""

    results: Path = Path("results/local")
    """folder that holds runs/"""
    output: Output = None
    """folder for the figures; <results>/figures by default"""

    def execute(self) -> None:
        records = ResultsFolder(self.results).require_records()
        folder = self.output or self.results / "figures"
        check_writable(folder, "--output")
        for figure in figures_of(records):
            for ending in ENDINGS:
                figure.plot.save(folder / f"{figure.name}{ending}")
            print(folder / f"{figure.name}.svg")


@dataclass(frozen=True)
class Map:
    """Draw a map of embeddings in two dimensions, coloured by class (PNG or SVG)."""

    file: tyro.conf.Positional[Path]
    """embeddings and labels: .npz, .npy with --labels, or .parquet, as for evaluate"""
    labels: Path | None = None
    """labels of FILE: .npy, or text with one per line"""
    output: Output = None
    """the map, .png or .svg; the name of FILE with .png by default"""
    method: Literal["pca", "umap"] = "pca"
    """principal components, or UMAP (needs umap-learn)"""
    seed: int = 0
    """of UMAP"""

    def execute(self) -> None:
        output = self.output or self.file.with_suffix(".png")
        if output.suffix not in ENDINGS:
            raise UserError(f"{output}: a map is written as {' or '.join(ENDINGS)}")
        arrays = read_embeddings(self.file, self.labels)
        embeddings, labels = arrays["embeddings"], arrays["labels"]
        if labels.shape != embeddings.shape[:1]:
            raise UserError(
                f"{self.file}: {labels.shape} labels for {embeddings.shape} embeddings; one label per row is needed"
            )
        check_writable(output.parent, "--output")
        points = project(embeddings, self.method, self.seed)
        embedding_map(points, labels, title=f"{self.file.name}, {self.method.upper()}").save(output)
        print(output)
