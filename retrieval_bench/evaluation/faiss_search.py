"""FAISS indices: a list of nearest neighbours per query, approximate (IVF, HNSW), for galleries of millions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import faiss
import numpy as np

from retrieval_bench.evaluation.retrieval_task import RetrievalTask
from retrieval_bench.evaluation.vectors import Rows, chunks

Approximate = Literal["ivf", "hnsw"]
SAMPLE, SAMPLE_DEPTH = 1000, 10
"""How many queries, and how many neighbours of each, an approximate index is compared with the exact one on."""


def rank_approximately(
    task: RetrievalTask, kind: Approximate, depth: int, probes: int = 32
) -> tuple[np.ndarray, dict[str, float]]:
    """Ranks of the positives that an approximate index (:func:`index_of`) lists; the others rank behind the gallery.

    Returns:
        int64 (sum of R,) ranks from 1, ascending per query, from lists of `depth` neighbours; and
        ``index_recall_at_10``, the share of the 10 true neighbours that the index finds, over 1,000 queries.
    """

    def rows_of(items: Rows) -> np.ndarray:
        return task.gallery.factors(task.gallery_order[items], "gallery")

    def search(index: Any, rows: Rows, length: int) -> tuple[np.ndarray, np.ndarray]:
        return index.search(task.queries.factors(task.query_order[rows], "query"), length)

    size, width = len(task.gallery_order), task.gallery.width
    index = index_of(rows_of, size, width, kind, probes)
    length = min(size, depth + 1)
    ranks = np.full(task.starts[-1], size + 1)
    for rows in chunks(len(task.counts), length):
        similarity, item = search(index, rows, length)
        similarity[(item == task.same_item[rows, None]) | (item < 0)] = -np.inf
        positive = (task.gallery_classes[item] == task.classes[rows, None]) & np.isfinite(similarity)
        order = np.lexsort((positive, -similarity), axis=1)  # of equal similarities negatives first
        row, before = np.nonzero(np.take_along_axis(positive, order, axis=1))
        first = np.searchsorted(row, np.arange(rows.stop - rows.start))
        place = np.arange(len(row)) - first[row]
        kept = place < task.kept[rows.start + row]
        ranks[(task.starts[rows.start + row] + place)[kept]] = before[kept] + 1
    sample = np.unique(np.linspace(0, len(task.counts) - 1, min(SAMPLE, len(task.counts))).astype(np.int64))
    exact = index_of(rows_of, size, width, "flat")
    near, nearest = (search(each, sample, min(SAMPLE_DEPTH, size))[1] for each in (index, exact))
    recall = (near[:, :, None] == nearest[:, None]).any(axis=1).mean()
    return ranks, {f"index_recall_at_{SAMPLE_DEPTH}": float(recall)}


def index_of(
    rows: Callable[[Rows], np.ndarray], size: int, dimension: int, kind: Approximate | Literal["flat"], probes: int = 32
) -> Any:
    """A FAISS index of inner products over `size` rows.

    Args:
        rows: gives the float32 rows (n, dimension) of some numbers; is called chunk by chunk.
        size: number of rows.
        dimension: of the rows.
        kind: flat is exact; ivf (inverted file, 4 sqrt(size) cells) and hnsw (graph, 32 links) are approximate.
        probes: cells that are searched; a quarter of the breadth of the search in a graph.
    """
    cells = max(1, min(round(4 * size**0.5), size // 39))  # FAISS asks for 39 training points per cell
    index: Any
    if kind == "flat":
        index = faiss.IndexFlatIP(dimension)
    elif kind == "ivf":
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, cells, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = min(probes, cells)
    else:
        index = faiss.IndexHNSWFlat(dimension, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efSearch = 4 * probes
    if not index.is_trained:
        index.cp.min_points_per_centroid = 1  # no warning for small galleries
        chosen = np.linspace(0, size - 1, min(size, 64 * cells)).astype(np.int64)
        index.train(rows(np.unique(chosen)))
    for part in chunks(size, dimension):
        index.add(rows(part))
    return index
