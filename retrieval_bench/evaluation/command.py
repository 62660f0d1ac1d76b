"""The command that measures embeddings from anywhere."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from retrieval_bench.errors import UserError
from retrieval_bench.evaluation.evaluate import Engine, TieRule, evaluate_in_detail
from retrieval_bench.evaluation.files import check_table_name, read_embeddings, read_numbers, write_frame
from retrieval_bench.evaluation.metrics import DEFAULT_METRICS, METRICS, MetricName
from retrieval_bench.evaluation.relevance import Difficulty, read_relevance
from retrieval_bench.evaluation.statistics import intervals

Positional = tyro.conf.Positional


@dataclass(frozen=True)
class Evaluate:
    """Retrieval metrics of your own embeddings (.npz, .npy with --labels, .parquet, .feather, .csv): all in all, or
    queries in a gallery."""

    file: Positional[Path | None] = None
    """embeddings and labels; every row is searched among all the others (or use --query and --gallery)"""
    labels: Path | None = None
    """labels of FILE: .npy, or text with one per line"""
    query: Path | None = None
    """embeddings and labels to search with"""
    query_labels: Path | None = None
    """labels of --query"""
    gallery: Path | None = None
    """embeddings and labels to search in"""
    gallery_labels: Path | None = None
    """labels of --gallery"""
    same_item: Path | None = None
    """for each query the row of the gallery that is itself and so left out, -1 for none: .npy, or a number a line"""
    labels_column: str | None = None
    """column or array of labels, perhaps several in a row (lists, a|b, or a matrix of 0 and 1): relevant is what shares
    one"""
    camera_column: str | None = None
    """column or array of cameras: items of the query's label and camera are left out (person re-identification)"""
    ignore_column: str | None = None
    """column or array that is 1 for items that are left out for every query"""
    relevance: Path | None = None
    """in place of labels: table with columns query, item, grade (rows from 0; below 0: left out), or .json with lists
    for each query"""
    relevant: Difficulty | None = None
    """which lists of a .json file are positives, as for Revisited Oxford and Paris"""
    rerank: tuple[str, ...] = ()
    """aqe:K[:alpha] expands queries, dba:K[:alpha] items, k_reciprocal[:k1:k2:lambda] re-ranks; in this order"""
    k: tuple[int, ...] = (1, 2, 4, 8)
    """the K of Recall@K, precision@K, mAP@K and nDCG@K"""
    metrics: tuple[MetricName, ...] = DEFAULT_METRICS
    """what is computed; map and curve need every rank and take longer"""
    distance: Literal["cosine", "l2"] = "cosine"
    """cosine similarity or Euclidean distance"""
    engine: Engine = "auto"
    """blocked (auto) is exact; reference (or flat) gives the same, slowly; ivf and hnsw (FAISS) are approximate, for
    millions"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """of the blocked engine"""
    memory_gb: float = 1.0
    """10^9 bytes that copies of the embeddings may take"""
    ties: TieRule = "lower"
    """items as similar as a positive: lower puts negatives first, bounds adds <metric>_upper with positives first,
    average gives expected values over random orders (for binary codes)"""
    intervals: bool = False
    """95 % bootstrap intervals, over queries and over classes"""
    per_query: Path | None = None
    """table with a row per query (.csv or .parquet)"""
    per_class: Path | None = None
    """table with a row per class"""
    curve: Path | None = None
    """table of the precision-recall curve"""
    json: bool = False
    """print JSON"""

    def execute(self) -> None:
        tables = [path for path in (self.per_query, self.per_class, self.curve) if path is not None]
        for path in tables:
            check_table_name(path)
        if len(set(tables)) < len(tables):
            raise UserError(f"{tables[0]}: two tables cannot be written to one file")
        metrics = self.metrics if self.curve is None or "curve" in self.metrics else (*self.metrics, "curve")
        choices = {
            name: getattr(self, name) for name in ("distance", "engine", "device", "memory_gb", "ties", "rerank")
        }
        arrays = self._arrays()
        if self.same_item is not None:
            arrays["same_item"] = read_numbers(self.same_item)
        if self.relevance is not None:
            sides = [arrays.get("query_embeddings", arrays["embeddings"]), arrays["embeddings"]]
            counts = len(sides[0]), len(sides[1])
            arrays = {"labels": None, **arrays, "relevance": read_relevance(self.relevance, self.relevant, counts)}
        elif self.relevant is not None:
            raise UserError(f"--relevant {self.relevant} belongs to --relevance FILE.json")
        found = evaluate_in_detail(**arrays, ks=self.k, metrics=metrics, **choices)
        frames = {self.per_query: found.per_query, self.per_class: found.per_class, self.curve: found.curve_frame}
        for path in tables:
            write_frame(frames[path](), path)
        ranges = intervals(found.columns) if self.intervals else {}
        if self.json:
            finite = {name: value if math.isfinite(value) else None for name, value in found.metrics.items()}
            print(json.dumps({**finite, **ranges}, allow_nan=False))
            return
        for name, value in found.metrics.items():
            line = f"{name:26}{as_text(name, value):>10}"
            for over in ("queries", "classes"):
                if f"{name}_over_{over}" in ranges:
                    low, high = ranges[f"{name}_over_{over}"]
                    line += f"   [{as_text(name, low)}, {as_text(name, high)}] over {over}"
            print(line)

    def _arrays(self) -> dict[str, Any]:
        """The embeddings and labels, as arguments of the evaluator."""
        if self.file is not None:
            if self.query_labels or self.gallery_labels:
                flags = "--query-labels and --gallery-labels"
                raise UserError(f"{flags} belong to --query and --gallery; the labels of a file are --labels")
            if self.query or self.gallery:
                raise UserError(f"{self.file}: give one file, or --query and --gallery, not both")
            return self._read(self.file, self.labels)
        if self.query is None or self.gallery is None:
            raise UserError("give a file with embeddings and labels, or --query FILE and --gallery FILE")
        if self.labels:
            raise UserError("--labels belongs to a single file; use --query-labels and --gallery-labels")
        query = self._read(self.query, self.query_labels, ("ignore",))
        gallery = self._read(self.gallery, self.gallery_labels)
        names = {"embeddings", "labels", "cameras"}
        for path, arrays, known in ((self.query, query, {"same_item"}), (self.gallery, gallery, {"ignore"})):
            if unused := sorted(arrays.keys() - names - known):
                raise UserError(f"{path}: holds {', '.join(unused)} too; give it as FILE, or leave them out")
        itself = {name: query[name] for name in ("same_item",) if name in query}
        return gallery | {f"query_{name}": query[name] for name in names & query.keys()} | itself

    def _read(self, path: Path, labels: Path | None, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
        """The arrays of a file, with the columns that were asked for."""
        if labels is not None and self.labels_column is not None:
            raise UserError(f"--labels-column {self.labels_column}: labels of {path} are also given as {labels}")
        named = {"labels": self.labels_column, "cameras": self.camera_column, "ignore": self.ignore_column}
        columns = {name: column for name, column in named.items() if column is not None and name not in leave_out}
        return read_embeddings(path, labels, columns, labelled=self.relevance is None)


def as_text(name: str, value: float) -> str:
    """The value of a metric for people: retrieval metrics in percent, as in all tables."""
    if any(name == metric or name.startswith(f"{metric}_") for metric in (*METRICS, "gap")):
        return f"{100 * value:.2f} %"
    return str(value) if isinstance(value, int) else f"{value:.4f}"
