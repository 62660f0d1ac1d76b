"""Where negatives fall between a query's positives: a histogram per query, filled pair by pair."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from retrieval_bench.evaluation.retrieval_task import RetrievalTask

PAIRS = 1 << 18
"""Pairs that are processed together."""


class Histogram:
    """Negatives between a query's positives: element i counts those right before its positive i (0 the best).

    Unless `everything` is counted, a positive is given up once it cannot be among the first R any more.
    """

    def __init__(self, task: RetrievalTask, everything: bool):
        self.task, self.everything = task, everything
        self.histogram = np.zeros(task.starts[-1], dtype=np.int64)
        self.alive = task.counts.copy()  # how many of each query's positives are not given up; the best ones
        self.steps = int(task.counts.max(initial=0)).bit_length() + 1
        self.queue = PairQueue(self._sort_in)

    def floor(self, queries: slice) -> np.ndarray:
        """float64 (n,): the limit of each query's worst positive that still counts, inf for none; gives some up."""
        self.queue.flush()
        starts, counts = self.task.starts[queries], self.task.counts[queries]
        if not self.everything:
            possible = self._before(queries) + self.task.places(queries) < np.repeat(counts, counts)
            query = np.repeat(np.arange(len(counts)), counts)
            self.alive[queries] = np.minimum(self.alive[queries], np.bincount(query[possible], minlength=len(counts)))
        alive = self.alive[queries]
        floor = np.full(len(counts), np.inf)
        floor[alive > 0] = self.task.limits[(starts + alive - 1)[alive > 0]]
        return floor

    def counts(self) -> np.ndarray:
        """int64 (sum of R,): negatives before each positive; the whole gallery before one that was given up."""
        self.queue.flush()
        task, every = self.task, slice(0, len(self.task.counts))
        alive = task.places(every) < np.repeat(self.alive, task.counts)
        return np.where(alive, self._before(every), len(task.gallery_order))

    def _before(self, queries: slice) -> np.ndarray:
        """int64: negatives so far before each positive of consecutive queries."""
        starts = self.task.starts[queries.start : queries.stop + 1]
        summed = np.concatenate([[0], np.cumsum(self.histogram[starts[0] : starts[-1]])])
        return summed[1:] - np.repeat(summed[starts[:-1] - starts[0]], np.diff(starts))

    def _sort_in(self, query: np.ndarray, item: np.ndarray, product: np.ndarray) -> None:
        """Counts negatives, given by their inner products; float64 decides where float32 cannot."""
        similarity, error = product.astype(np.float64) - self.task.gallery.offset, self.task.gallery.error
        place = self._place(query, similarity + error)
        unsure = np.flatnonzero(place != self._place(query, similarity - error))
        place[unsure] = self._place(query[unsure], self.task.similarity(query[unsure], item[unsure]))
        inside = place < self.task.counts[query]
        np.add.at(self.histogram, self.task.starts[query[inside]] + place[inside], 1)

    def _place(self, query: np.ndarray, similarity: np.ndarray) -> np.ndarray:
        """int64 (n,): the first of its query's positives that a negative ranks before, R for none, by binary search."""
        starts, limits = self.task.starts[query], self.task.limits
        low, high = np.zeros(len(query), dtype=np.int64), self.task.counts[query]
        for _ in range(self.steps):
            middle, is_open = (low + high) // 2, low < high
            before = limits[np.where(is_open, starts + middle, 0)] <= similarity
            high, low = np.where(is_open & before, middle, high), np.where(is_open & ~before, middle + 1, low)
        return low


class PairQueue:
    """Collects pairs, as arrays of one length, and hands many at a time to `process`, since few cost as much."""

    def __init__(self, process: Callable[..., None]):
        self.process, self.size = process, 0
        self.parts: list[tuple[np.ndarray, ...]] = []

    def add(self, *arrays: np.ndarray) -> None:
        """Adds pairs."""
        self.parts.append(arrays)
        self.size += len(arrays[0])
        if self.size > PAIRS:
            self.flush()

    def flush(self) -> None:
        """Processes what was collected."""
        parts, size = self.parts, self.size
        self.parts, self.size = [], 0
        if size:
            self.process(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
