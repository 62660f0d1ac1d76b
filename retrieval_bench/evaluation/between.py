"""Counts of negatives between a query's positives, from pairs of query and negative that come block by block."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from retrieval_bench.evaluation.retrieval_task import RetrievalTask

PAIRS = 1 << 18
"""Pairs that are processed together."""


class Between:
    """Negatives between a query's positives: element i of `histogram` counts those right before its positive i (0 the
    best). A positive is given up once it cannot rank within the query's depth any more."""

    def __init__(self, task: RetrievalTask):
        self.task = task
        self.histogram = np.zeros(task.starts[-1], dtype=np.int64)
        self.alive = np.where(task.kept > 1, task.kept, 0)  # how many of each query's positives are not given up
        self.limits = _keys(np.repeat(np.arange(len(task.kept)), task.kept), task.limits)
        self.queue = PairQueue(self._sort_in)

    def floor(self, queries: slice) -> np.ndarray:
        """float64 (n,): the limit of each query's worst positive that still counts, inf for none; gives some up."""
        self.queue.flush()
        starts, kept = self.task.starts[queries], self.task.kept[queries]
        possible = self._before(queries) + self.task.places(queries) < np.repeat(self.task.depth[queries], kept)
        query = np.repeat(np.arange(len(kept)), kept)
        self.alive[queries] = np.minimum(self.alive[queries], np.bincount(query[possible], minlength=len(kept)))
        alive = self.alive[queries]
        floor = np.full(len(kept), np.inf)
        floor[alive > 0] = self.task.limits[(starts + alive - 1)[alive > 0]]
        return floor

    def give_up(self, queries: slice, products: np.ndarray) -> None:
        """Gives up positives of consecutive queries behind a product that as many negatives reach as rank within the
        depth."""
        kept = self.task.kept[queries]
        limits = self.task.limits[self.task.starts[queries.start] : self.task.starts[queries.stop]]
        behind = self.task.gallery.similarity(products) - self.task.gallery.error()
        possible = np.repeat(np.arange(len(kept)), kept)[limits >= np.repeat(behind, kept)]
        self.alive[queries] = np.minimum(self.alive[queries], np.bincount(possible, minlength=len(kept)))

    def counts(self) -> np.ndarray:
        """int64 (sum of kept,): negatives before each positive; the whole gallery before one that was given up."""
        self.queue.flush()
        task, every = self.task, slice(0, len(self.task.kept))
        alive = task.places(every) < np.repeat(self.alive, task.kept)
        return np.where(alive, self._before(every), len(task.gallery_order))

    def _before(self, queries: slice) -> np.ndarray:
        """int64: negatives so far before each positive of consecutive queries."""
        starts = self.task.starts[queries.start : queries.stop + 1]
        summed = np.concatenate([[0], np.cumsum(self.histogram[starts[0] : starts[-1]])])
        return summed[1:] - np.repeat(summed[starts[:-1] - starts[0]], np.diff(starts))

    def _sort_in(self, query: np.ndarray, item: np.ndarray, product: np.ndarray) -> None:
        """Counts negatives, given by their inner products; float64 decides where float32 cannot."""
        similarity, error = self.task.gallery.similarity(product), self.task.gallery.error()
        place = self._place(query, similarity + error)
        unsure = np.flatnonzero(place != self._place(query, similarity - error))
        place[unsure] = self._place(query[unsure], self.task.similarity(query[unsure], item[unsure]))
        np.add.at(self.histogram, place[place < self.task.starts[query + 1]], 1)

    def _place(self, query: np.ndarray, similarity: np.ndarray) -> np.ndarray:
        """int64 (n,): flat number of the first of its query's positives that a negative ranks before, that of the next
        query's for none."""
        return np.searchsorted(self.limits, _keys(query, similarity))


def _keys(query: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """complex128 (n,): numbers that are ordered by query, then from the largest similarity to the smallest."""
    keys = np.empty(len(query), dtype=np.complex128)
    keys.real, keys.imag = query, -similarity
    return keys


class PairQueue:
    """Collects pairs, as arrays of one length, and hands many at a time to `process`, since few cost as much."""

    def __init__(self, process: Callable[..., None]):
        self.process, self.size = process, 0
        self.parts: list[tuple[np.ndarray, ...]] = []

    def add(self, *arrays: np.ndarray) -> None:
        self.parts.append(arrays)
        self.size += len(arrays[0])
        if self.size > PAIRS:
            self.flush()

    def flush(self) -> None:
        parts, size = self.parts, self.size
        self.parts, self.size = [], 0
        if size:
            self.process(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
