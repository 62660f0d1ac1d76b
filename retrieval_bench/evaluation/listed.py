"""FAISS engines: a list of nearest neighbours per query. Flat is exact; IVF and HNSW are approximate, for galleries of millions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import faiss
import numpy as np

from retrieval_bench.evaluation.blocked import Goal, count_blocked
from retrieval_bench.evaluation.buckets import Buckets
from retrieval_bench.evaluation.matching import Matching, subset
from retrieval_bench.evaluation.vectors import PIECE, Rows

Approximate = Literal["ivf", "hnsw"]
SAMPLE, SAMPLE_DEPTH = 1000, 10
"""How many queries, and how many neighbours of each, an approximate index is compared with the exact one on."""


def count_flat(matching: Matching, goal: Goal, depth: int) -> np.ndarray:
    """As :func:`retrieval_bench.evaluation.blocked.count_blocked`, from FAISS's flat lists.

    Pairs that float32 cannot decide are decided in float64; queries whose list ends too early for a decision are counted by the blocked
    engine.

    Args:
        matching: the search.
        goal: ``first`` or ``top``.
        depth: length of the lists, but for the positives of a class.
    """
    buckets = Buckets(matching, deep=True)
    index = build_index(matching, "flat")
    size = len(matching.gallery_order)
    length = min(size, max(depth, 2 * int(matching.counts.max(initial=0))) + 1)
    ends = np.empty(len(matching.counts))
    for rows in _chunks(len(matching.counts), length):
        found, item = search(index, matching, rows, length)
        query = np.repeat(np.arange(rows.start, rows.stop), length)
        ends[rows] = found[:, -1]
        negative = matching.classes[query] != matching.gallery_classes[item.ravel()]
        buckets.add(query[negative], item.ravel()[negative], found.ravel()[negative])
    ahead = buckets.ahead()
    if length == size:
        return ahead
    query = np.repeat(np.arange(len(matching.counts)), matching.counts)
    best = np.arange(len(ahead)) == matching.starts[query]
    enough = np.where(best, size, np.maximum(depth, matching.counts[query]))
    listed = matching.limits + matching.gallery.offset > ends[query] + matching.gallery.error
    open_ = (best | (goal != "first")) & ~listed & (ahead < enough)
    unsure = np.unique(query[open_])
    if len(unsure):
        again = subset(matching, unsure)
        ahead[np.isin(query, unsure)] = count_blocked(again, "first" if goal == "first" else "top")
    return ahead


def rank_approximately(
    matching: Matching, kind: Approximate, depth: int, probes: int = 32
) -> tuple[np.ndarray, dict[str, float]]:
    """Ranks of the positives that an approximate index lists; those that it misses rank behind the whole gallery, as a user would see it.

    Args:
        matching: the search.
        kind: ``ivf`` (inverted file, 4 sqrt(G) cells) or ``hnsw`` (graph, 32 links).
        depth: length of the lists.
        probes: IVF cells that are searched; HNSW's search width is four times as much.

    Returns:
        int64 (sum of R,) ranks from 1, in ascending order per query; and ``index_recall_at_10``, the share of the 10 true neighbours that
        the index finds, over 1,000 queries.
    """
    index = build_index(matching, kind, probes)
    size = len(matching.gallery_order)
    length = min(size, depth + 1)
    ranks = np.full(len(matching.positives), size + 1)
    for rows in _chunks(len(matching.counts), length):
        found, item = search(index, matching, rows, length)
        found[(item == matching.itself[rows, None]) | (item < 0)] = -np.inf
        positive = (matching.gallery_classes[item] == matching.classes[rows, None]) & np.isfinite(found)
        order = np.lexsort((positive, -found), axis=1)  # of equal similarities negatives first
        row, place = np.nonzero(np.take_along_axis(positive, order, axis=1))
        first = np.searchsorted(row, np.arange(rows.stop - rows.start))
        ranks[matching.starts[rows.start + row] + np.arange(len(row)) - first[row]] = place + 1
    return ranks, {f"index_recall_at_{SAMPLE_DEPTH}": _index_recall(index, matching)}


def build_index(matching: Matching, kind: Literal["flat", "ivf", "hnsw"], probes: int = 32) -> Any:
    """A FAISS index of inner products over the gallery, in the matching's order."""

    def rows(places: Rows) -> np.ndarray:
        return matching.gallery.single(matching.gallery_order[places], "right")

    return index_of(rows, len(matching.gallery_order), matching.gallery.size, kind, probes)


def index_of(
    rows: Callable[[Rows], np.ndarray],
    size: int,
    dimension: int,
    kind: Literal["flat", "ivf", "hnsw"],
    probes: int = 32,
) -> Any:
    """A FAISS index of inner products.

    Args:
        rows: gives the float32 rows (n, dimension) at some places; is asked a piece at a time.
        size: number of rows.
        dimension: of the rows.
        kind: flat is exact; ivf (cells) and hnsw (a graph) are approximate.
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
    step = max(1, PIECE // dimension)
    if not index.is_trained:
        index.cp.min_points_per_centroid = 1  # no warning for small galleries
        chosen = np.linspace(0, size - 1, min(size, 64 * cells)).astype(np.int64)
        index.train(rows(np.unique(chosen)))  # pyright: ignore[reportCallIssue]
    for start in range(0, size, step):
        index.add(rows(slice(start, start + step)))  # pyright: ignore[reportCallIssue]
    return index


def search(index: Any, matching: Matching, rows: slice | np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 similarities (n, length), descending, and int64 places in the gallery; -1 where an approximate index has no more."""
    return index.search(matching.queries.single(matching.query_order[rows], "left"), length)


def _index_recall(index: Any, matching: Matching) -> float:
    rows = np.unique(np.linspace(0, len(matching.counts) - 1, min(SAMPLE, len(matching.counts))).astype(np.int64))
    length = min(SAMPLE_DEPTH, len(matching.gallery_order))
    found = search(index, matching, rows, length)[1]
    true = search(build_index(matching, "flat"), matching, rows, length)[1]
    return float((found[:, :, None] == true[:, None]).any(axis=1).mean())


def _chunks(count: int, length: int) -> list[slice]:
    step = max(1, PIECE // length)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]
