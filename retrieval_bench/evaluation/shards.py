"""Exact search in galleries that are too large for one index: a FAISS flat index per shard, in threads or in Ray actors, lists merged.

Similarities are inner products in float64 (of rows of length 1: cosines). FAISS looks in float32 and only proposes; a shard's list is
taken as it is once no row that it leaves out can come before its end, whatever float32 rounded, and is made longer until then. So the
result is that of one sorted list of all similarities, however many shards there are: by similarity, of equal ones the smaller row first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import faiss
import numpy as np

from retrieval_bench.errors import UserError

SPARE = 8
"""How many more rows than asked for FAISS proposes at first."""
PIECE = 1 << 23
"""Float64 numbers that are multiplied at once."""


@dataclass(frozen=True)
class Nearest:
    """The nearest rows of each query, the nearest first.

    Attributes:
        similarities: float64 (Q, k).
        rows: int64 (Q, k).
    """

    similarities: np.ndarray
    rows: np.ndarray


class Shard:
    """A part of a gallery.

    Args:
        gallery: float32 (N, D).
        first: number of its first row in the whole gallery.
    """

    def __init__(self, gallery: np.ndarray, first: int = 0):
        self.gallery = np.ascontiguousarray(gallery, dtype=np.float32)
        self.first = first
        self.longest = float(np.sqrt(np.einsum("ij,ij->i", self.gallery, self.gallery, dtype=np.float64)).max())
        self.index = faiss.IndexFlatIP(self.gallery.shape[1])
        self.index.add(self.gallery)  # pyright: ignore[reportCallIssue]

    def nearest(self, queries: np.ndarray, k: int) -> Nearest:
        """The `k` nearest rows of each query, or all if there are fewer, with their numbers in the whole gallery.

        Args:
            queries: float32 (Q, D).
            k: how many.
        """
        k = min(k, len(self.gallery))
        found = Nearest(np.empty((len(queries), k)), np.empty((len(queries), k), dtype=np.int64))
        open_, length = np.arange(len(queries)), min(k + SPARE, len(self.gallery))
        while len(open_):
            size = max(1, PIECE // (length * queries.shape[1]))
            unsure = [self._look(queries, piece, length, found) for piece in _pieces(open_, size)]
            open_, length = np.concatenate(unsure), min(4 * length, len(self.gallery))
        return Nearest(found.similarities, found.rows + self.first)

    def _look(self, queries: np.ndarray, numbers: np.ndarray, length: int, found: Nearest) -> np.ndarray:
        """Fills in the queries with these `numbers` from lists of this `length`; those whose list is too short to be sure of."""
        asked = np.ascontiguousarray(queries[numbers])
        proposed, rows = self.index.search(asked, length)  # pyright: ignore[reportCallIssue]
        exact = (self.gallery[rows].astype(np.float64) * asked[:, None].astype(np.float64)).sum(axis=2)
        best = _top(Nearest(exact, rows), found.rows.shape[1])
        found.similarities[numbers], found.rows[numbers] = best.similarities, best.rows
        if length == len(self.gallery):
            return numbers[:0]
        lengths = np.sqrt((asked.astype(np.float64) ** 2).sum(axis=1))
        rounding = (asked.shape[1] + 2) * 2.0**-23 * lengths * self.longest
        return numbers[proposed[:, -1].astype(np.float64) + rounding >= best.similarities[:, -1]]


def merge(lists: Sequence[Nearest], k: int) -> Nearest:
    """The `k` nearest rows of each query, or all if there are fewer, from the lists of shards that are at least so long."""
    similarities, rows = (
        np.concatenate([getattr(part, name) for part in lists], axis=1) for name in ("similarities", "rows")
    )
    return _top(Nearest(similarities, rows), min(k, rows.shape[1]))


def nearest(queries: np.ndarray, gallery: np.ndarray, k: int, shards: int = 1, by_ray: bool = False) -> Nearest:
    """The nearest rows of a gallery, searched shard by shard.

    Args:
        queries: (Q, D) numbers, which are taken as float32.
        gallery: (N, D), possibly memory-mapped; each shard copies its part.
        k: how many rows of each query.
        shards: how many; at most N.
        by_ray: each shard in an actor of the Ray that has been started (``ray.init``), on any machine; else in a thread.

    Returns:
        min(k, N) rows per query; the same for any number of shards.

    Raises:
        UserError: shapes that do not fit, `k` or `shards` out of range, or a number that is none.
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1] or not len(gallery):
        raise UserError(
            f"queries {queries.shape} and gallery {gallery.shape} must be (Q, D) and (N, D), with a row in the gallery"
        )
    if k < 1 or not 1 <= shards <= len(gallery):
        raise UserError(
            f"k {k}, shards {shards}: give at least 1, and at most a shard for each of the {len(gallery)} rows"
        )
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    bounds = np.linspace(0, len(gallery), shards + 1).astype(int)
    parts = [(int(first), int(end)) for first, end in pairwise(bounds)]
    if not np.isfinite(queries).all() or not all(np.isfinite(gallery[first:end]).all() for first, end in parts):
        raise UserError("queries and gallery must hold finite numbers")
    if by_ray:
        return merge(_by_ray(queries, gallery, k, parts), k)
    with ThreadPoolExecutor(shards) as pool:
        return merge(list(pool.map(lambda part: Shard(gallery[slice(*part)], part[0]).nearest(queries, k), parts)), k)


def _by_ray(queries: np.ndarray, gallery: np.ndarray, k: int, parts: Sequence[tuple[int, int]]) -> list[Nearest]:
    import ray

    kind: Any = ray.remote(Shard)
    actors = [kind.remote(np.asarray(gallery[first:end]), first) for first, end in parts]
    asked = ray.put(queries)
    return ray.get([actor.nearest.remote(asked, k) for actor in actors])


def _top(found: Nearest, k: int) -> Nearest:
    """The first `k` by similarity, then by row."""
    order = np.lexsort((found.rows, -found.similarities), axis=1)[:, :k]
    return Nearest(np.take_along_axis(found.similarities, order, axis=1), np.take_along_axis(found.rows, order, axis=1))


def _pieces(numbers: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (numbers[start : start + size] for start in range(0, len(numbers), size))
