"""Exact counts query by query: all similarities of a query in float64, sorted. It takes the queries that the fast
engine cannot decide by counting: those of large classes, poor embeddings, ties and copies.

Products of float64 decide nearly all; where a negative is too close to a positive's limit for them, differences of rows
do.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from retrieval_bench.evaluation.retrieval_task import RetrievalTask
from retrieval_bench.evaluation.vectors import Copies, chunks, similarities

NUMBERS = 1 << 21
"""Similarities that are computed at once."""
COPIES = 64
"""Queries of one row from which on the row is compared with the gallery once, by differences."""


def count_negatives(task: RetrievalTask, device: str = "cpu", memory: float = 1e9) -> np.ndarray:
    """As :func:`retrieval_bench.evaluation.ranking.count_negatives`, but a count that puts a rank beyond the query's
    depth, other than the best one's, is only known to do so."""
    if len(task.query_order) < max(COPIES, len(task.queries) / 16):  # finding copies would take longer
        return _count_singly(task, device, memory)
    counts = np.empty(task.starts[-1], dtype=np.int64)
    _, kinds, sizes = np.unique(task.queries.keys[task.query_order], return_inverse=True, return_counts=True)
    copies = sizes >= COPIES
    for kind in np.flatnonzero(copies):
        _count_copies(task, np.flatnonzero(kinds == kind), counts)
    single = ~copies[kinds]
    if single.any():
        rest = task.subset(np.flatnonzero(single)) if copies.any() else task
        counts[np.repeat(single, task.kept)] = _count_singly(rest, device, memory)
    return counts


def _count_copies(task: RetrievalTask, queries: np.ndarray, counts: np.ndarray) -> None:
    """Fills in the counts of queries whose rows are equal: their classes apart, all find the same similarities."""
    row = task.queries.rows(task.query_order[queries[:1]])
    parts = (task.gallery.rows(task.gallery_order[part]) for part in chunks(len(task.gallery), task.gallery.width))
    similarity = np.concatenate([similarities(row, part)[0] for part in parts])
    ordered = np.sort(similarity)
    for query in queries.tolist():
        first, last = task.gallery_starts[task.classes[query] :][:2].tolist()
        same_class, positives = np.sort(similarity[first:last]), _own(task, query, similarity)
        limits = task.limits_of(np.sort(positives)[::-1][: task.kept[query]])
        behind = np.searchsorted(ordered, limits) - np.searchsorted(same_class, limits)
        counts[task.starts[query] : task.starts[query + 1]] = len(ordered) - len(same_class) - behind


def _count_singly(task: RetrievalTask, device: str, memory: float) -> np.ndarray:
    """int64 (sum of kept,): :func:`count_negatives` of each query by itself."""
    size, counts = len(task.gallery_order), np.empty(task.starts[-1], dtype=np.int64)
    place = torch.device(device)
    gallery = Copies(task.gallery, task.gallery_order, "gallery", place, memory, np.float64)
    parts = chunks(size, task.gallery.width) if gallery.copy is None else [slice(0, size)]
    margin = 2 * task.gallery.error(np.float64)

    def count(queries: np.ndarray, products: np.ndarray) -> None:
        for query, row in zip(queries.tolist(), products, strict=True):
            counts[task.starts[query] : task.starts[query + 1]] = _count(task, query, row, margin)

    step, threads = max(1, min(256, NUMBERS // size)), torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(task.query_order), step):
            queries = np.arange(start, min(start + step, len(task.query_order)))
            rows = task.queries.factors(task.query_order[queries], "query", np.float64)
            left = torch.from_numpy(rows).to(place)
            products = torch.cat([left @ gallery[part].T for part in parts], dim=1).cpu().numpy()
            list(pool.map(count, np.array_split(queries, threads), np.array_split(products, threads)))
    return counts


def _count(task: RetrievalTask, query: int, products: np.ndarray, margin: float) -> np.ndarray:
    """int64 (kept,): negatives before a query's positives, given its products with all items."""
    kept, code = int(task.kept[query]), task.classes[query]
    if not kept:
        return np.empty(0, dtype=np.int64)
    similarity = np.minimum(task.gallery.similarity(products), 0.0)
    first, last = task.gallery_starts[code : code + 2].tolist()
    while True:
        positives = np.sort(_largest(_own(task, query, similarity), kept))[-kept:]
        negatives = np.concatenate([similarity[:first], similarity[last:]])
        limits = task.limits_of(positives)
        counts, unsure = _before(negatives, limits, int(min(task.depth[query], len(negatives))), margin)
        if not unsure.any():
            return counts[::-1]
        lowest = min(limits[unsure].min(), positives[unsure].min()) - 2 * margin
        highest = max(limits[unsure].max(), positives[unsure].max()) + 2 * margin
        near = np.flatnonzero((similarity >= lowest) & (similarity <= highest))
        similarity[near], margin = _exactly(task, query, near), 0.0


def _own(task: RetrievalTask, query: int, similarity: np.ndarray) -> np.ndarray:
    """Similarities of a query's positives, of those of all items."""
    code, itself = task.classes[query], task.same_item[query]
    first, last = task.gallery_starts[code : code + 2].tolist()
    return similarity[first:last] if itself < 0 else np.delete(similarity[first:last], itself - first)


def _before(negatives: np.ndarray, limits: np.ndarray, depth: int, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """How many negatives are at least each ascending limit less `margin`, the last one's exactly and others' up to
    `depth`; and of which limits another one is less than `margin` below or above."""
    top = np.sort(_largest(negatives, depth))
    place = np.searchsorted(top, limits - margin)
    counts, unsure = len(top) - place, np.append(top, np.inf)[place] < limits + margin
    if len(top) < len(negatives):
        counts[-1], surely = (np.count_nonzero(negatives >= limits[-1] + sign * margin) for sign in (-1, 1))
        unsure[-1] = counts[-1] != surely
    return counts, unsure


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """The `count` largest values in any order; all of them if there are not many more."""
    cut = len(values) - count
    return values if cut < count else np.partition(values, cut - 1)[cut:] if count else values[:0]


def _exactly(task: RetrievalTask, query: int, items: np.ndarray) -> np.ndarray:
    """float64 (n,): similarities of a query and some items, each kind of equal rows once."""
    row = task.queries.rows(task.query_order[query : query + 1])
    rows = task.gallery_order[items]
    keys = task.gallery.keys[rows]
    first, inverse = np.zeros(1, dtype=np.int64), np.zeros(len(rows), dtype=np.int64)
    if (keys != keys[0]).any():
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    parts = [slice(start, start + 1024) for start in range(0, len(first), 1024)]
    return np.concatenate([similarities(row, task.gallery.rows(rows[first[part]]))[0] for part in parts])[inverse]
