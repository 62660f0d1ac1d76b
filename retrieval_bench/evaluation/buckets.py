"""Where negatives fall between a query's positives: a histogram per query, filled pair by pair."""

from __future__ import annotations

import numpy as np

from retrieval_bench.evaluation.matching import Matching

BATCH = 1 << 18
"""Pairs that are sorted into buckets at a time."""


class Buckets:
    """Counts how many negatives rank before each positive.

    Bucket b of a query with R positives holds the negatives that rank before exactly b of them, so before the b worst.

    Args:
        matching: the search.
        deep: count for all positives; otherwise a positive is given up once it cannot be among the first R any more.
    """

    def __init__(self, matching: Matching, deep: bool):
        self.matching = matching
        self.deep = deep
        self.alive = np.ones(len(matching.positives), dtype=bool)
        self.histogram = np.zeros(len(matching.positives) + len(matching.counts), dtype=np.int64)
        self.steps = int(matching.counts.max(initial=0)).bit_length() + 1
        self.waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.pairs = 0

    def add(self, query: np.ndarray, item: np.ndarray, product: np.ndarray) -> None:
        """Takes in negatives: places of query and item, and their inner products (float32)."""
        self.waiting.append((query, item, product))
        self.pairs += len(query)
        if self.pairs > BATCH:
            self._sort_in()

    def _sort_in(self) -> None:
        """Puts what was taken in into its buckets; many pairs at a time, since few cost as much."""
        if not self.waiting:
            return
        query, item, product = (np.concatenate(parts) for parts in zip(*self.waiting, strict=True))
        self.waiting, self.pairs = [], 0
        values, error = product.astype(np.float64) - self.matching.gallery.offset, self.matching.gallery.error
        close = np.flatnonzero(self._beaten(query, values - error) != self._beaten(query, values + error))
        values[close] = self.matching.exact(query[close], item[close])
        np.add.at(self.histogram, self.matching.starts[query] + query + self._beaten(query, values), 1)

    def floor(self, queries: slice) -> np.ndarray:
        """float64 (n,): the limit of each query's worst positive that still counts; inf if none does. Gives positives up."""
        self._sort_in()
        matching = self.matching
        part = slice(int(matching.starts[queries.start]), int(matching.starts[queries.stop]))
        counts = matching.counts[queries]
        query = np.repeat(np.arange(queries.start, queries.stop), counts)
        if not self.deep:
            self.alive[part] &= self._ahead(query, part) + self._place(query, part) < matching.counts[query]
        lowest = np.full(len(counts), np.inf)
        chosen = np.flatnonzero(self.alive[part])
        lowest[query[chosen] - queries.start] = matching.limits[part][
            chosen
        ]  # best first: the last one written is the worst
        return lowest

    def ahead(self) -> np.ndarray:
        """int64 (sum of R,): negatives before each positive, in the order of :attr:`Matching.positives` (best first).

        A positive that was given up counts as behind the whole gallery.
        """
        self._sort_in()
        whole = slice(0, len(self.alive))
        query = np.repeat(np.arange(len(self.matching.counts)), self.matching.counts)
        return np.where(self.alive, self._ahead(query, whole), len(self.matching.gallery_order))

    def _ahead(self, query: np.ndarray, part: slice) -> np.ndarray:
        """int64: negatives so far before each positive of consecutive queries, `part` of all positives."""
        if not len(query):
            return np.empty(0, dtype=np.int64)
        counts, begin = self.matching.counts[query], part.start + int(query[0])
        summed = np.concatenate([[0], np.cumsum(self.histogram[begin : part.stop + int(query[-1]) + 1])])
        first = self.matching.starts[query] + query - begin
        # positive i (0 the best) is beaten by the negatives in buckets R - i .. R
        return summed[first + counts + 1] - summed[first + counts - self._place(query, part)]

    def _place(self, query: np.ndarray, part: slice) -> np.ndarray:
        """int64: 0 for a query's best positive, 1 for the next, ..."""
        return np.arange(part.start, part.stop) - self.matching.starts[query]

    def _beaten(self, query: np.ndarray, values: np.ndarray) -> np.ndarray:
        """int64: before how many of its query's positives each value ranks (binary search, all at once)."""
        limits, starts, counts = self.matching.limits, self.matching.starts, self.matching.counts
        low, high = np.zeros(len(query), dtype=np.int64), counts[query]
        if not len(limits):
            return low
        for _ in range(self.steps):
            open_ = low < high
            middle = (low + high) // 2
            inside = np.where(open_, starts[query] + counts[query] - 1 - middle, 0)  # positives are best first
            smaller = open_ & (limits[inside] <= values)
            low = np.where(smaller, middle + 1, low)
            high = np.where(open_ & ~smaller, middle, high)
        return low
