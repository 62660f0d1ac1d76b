"""Where negatives fall between a query's positives: a histogram per query, filled pair by pair."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from retrieval_bench.evaluation.matching import Matching

Exact = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Buckets:
    """Counts how many negatives rank before each positive.

    Bucket b of a query with R positives holds the negatives that rank before exactly b of them, so before the b worst.

    Args:
        matching: the search.
        error: how far a given similarity may be from the true one; a pair that close to a positive is computed in float64.
        tie: similarities this close are equal.
        exact: float64 similarities of pairs of places.
    """

    def __init__(self, matching: Matching, error: float, tie: float, exact: Exact):
        self.matching = matching
        self.error = error
        self.tie = tie
        self.exact = exact
        self.histogram = np.zeros(len(matching.positives) + len(matching.counts), dtype=np.int64)
        self.depth = int(matching.counts.max(initial=0)).bit_length()

    def add(self, query: np.ndarray, item: np.ndarray, similarity: np.ndarray) -> None:
        """Takes in negatives: places of query and item, and their similarities (float32)."""
        values = similarity.astype(np.float64)
        close = np.flatnonzero(self._beaten(query, values - self.error) != self._beaten(query, values + self.error))
        values[close] = self.exact(query[close], item[close])
        bucket = self._beaten(query, values + self.tie)
        np.add.at(self.histogram, self.matching.starts[query] + query + bucket, 1)

    def ahead(self) -> np.ndarray:
        """int64 (sum of R,): negatives before each positive, in the order of :attr:`Matching.positives` (best first)."""
        matching = self.matching
        query = np.repeat(np.arange(len(matching.counts)), matching.counts)
        place = np.arange(len(query)) - matching.starts[query]
        summed = np.concatenate([[0], np.cumsum(self.histogram)])
        first = matching.starts[query] + query
        # positive i (0 the best) is beaten by the negatives in buckets R - i .. R
        return summed[first + matching.counts[query] + 1] - summed[first + matching.counts[query] - place]

    def _beaten(self, query: np.ndarray, values: np.ndarray) -> np.ndarray:
        """int64: how many of its query's positives are at most each value (binary search, all at once)."""
        positives, starts = self.matching.positives, self.matching.starts
        low, high = np.zeros(len(query), dtype=np.int64), self.matching.counts[query]
        for _ in range(self.depth + 1):
            open_ = low < high
            middle = (low + high) // 2
            inside = np.where(open_, starts[query] + self.matching.counts[query] - 1 - middle, 0)  # positives are best first
            smaller = open_ & (positives[inside] <= values)
            low = np.where(smaller, middle + 1, low)
            high = np.where(open_ & ~smaller, middle, high)
        return low
