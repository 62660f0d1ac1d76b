"""Expected metrics when items of equal similarity are in random order (McSherry and Najork, Computing Information
Retrieval Performance Measures Efficiently in the Presence of Tied Scores, ECIR 2008), as binary codes need them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import gammaln

from retrieval_bench.evaluation.metrics import Ranking


class Ties:
    """Levels of equal similarity that hold positives, query after query: `positives` r of `items` n items, behind
    `before` items t of which `found` are positives (all int64 or float64 (L,)); `query` is the place of its query.

    Args:
        worst: every rank of every positive, with negatives first among equals.
        best: with positives first.
    """

    def __init__(self, worst: Ranking, best: Ranking):
        places = worst.hits - 1
        query = np.repeat(np.arange(len(worst.counts)), worst.counts)
        fewest, most = best.ranks - 1 - places, worst.ranks - 1 - places  # negatives before each positive
        first = np.flatnonzero(np.any([np.diff(each, prepend=-1) != 0 for each in (query, fewest, most)], axis=0))
        self.query, self.found, self.counts = query[first], places[first], worst.counts
        self.positives = np.diff(first, append=len(query))
        self.items = self.positives + most[first] - fewest[first]
        self.before = fewest[first] + self.found
        last = int((self.before + self.items).max(initial=0))
        self.harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, last + 1))])

    def within(self, depth: np.ndarray | int) -> np.ndarray:
        """int64 (L,): how many items of each level rank up to `depth`, one for all queries or (Q,)."""
        limit = np.broadcast_to(depth, self.counts.shape)[self.query]
        return np.clip(limit - self.before, 0, self.items)

    def precision(self, depth: np.ndarray | int) -> np.ndarray:
        """float64 (Q,): expected share of positives among the first `depth`."""
        return self._sums(self.positives / self.items * self.within(depth)) / depth

    def average_precision(self, depth: np.ndarray | int) -> np.ndarray:
        """float64 (Q,): 1/R times the expected sum, over positives up to `depth`, of the precision at their rank."""
        inside = self.within(depth)
        inverse = self.harmonic[self.before + inside] - self.harmonic[self.before]
        others = (self.positives - 1) / np.maximum(self.items - 1, 1)  # positives per earlier item
        expected = (self.found + 1) * inverse + others * (inside - (self.before + 1) * inverse)
        return self._sums(self.positives / self.items * expected) / self.counts

    def ndcg(self, depth: int) -> np.ndarray:
        """float64 (Q,): expected gain of positives up to `depth`, of the best order's."""
        ranks = np.arange(1, len(self.harmonic))
        gains = np.concatenate([[0.0], np.cumsum(1 / np.log2(ranks + 1))])
        expected = self.positives / self.items * (gains[self.before + self.within(depth)] - gains[self.before])
        return self._sums(expected) / gains[np.minimum(self.counts, depth)]

    def recall(self, depth: int) -> np.ndarray:
        """float64 (Q,): probability of a positive among the first `depth`."""
        first = self.found == 0
        return 1 - self._without(first, self.within(depth)[first])

    def reciprocal_rank(self) -> np.ndarray:
        """float64 (Q,): expected 1 / rank of the first positive."""
        first = np.flatnonzero(self.found == 0)
        values = np.empty(len(first))
        for number, level in enumerate(first):
            drawn = np.arange(self.items[level] - self.positives[level] + 2)
            behind = self._without(np.full(len(drawn), level), drawn)  # none of the first ones is a positive
            values[number] = ((behind[:-1] - behind[1:]) / (self.before[level] + drawn[1:])).sum()
        return values

    def _without(self, levels: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """float64: probability that the first `drawn` items of some levels are all negatives."""
        items, negatives = self.items[levels], (self.items - self.positives)[levels]
        logs = gammaln(negatives + 1) - gammaln(np.maximum(negatives - drawn, 0) + 1)
        logs += gammaln(items - drawn + 1) - gammaln(items + 1)
        return np.where(drawn > negatives, 0.0, np.where(drawn == 0, 1.0, np.exp(logs)))

    def _sums(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self.query, values, len(self.counts))


EXPECTED: dict[str, Callable[[Ties, int], np.ndarray]] = {
    "recall": lambda ties, k: ties.recall(k),
    "precision": lambda ties, k: ties.precision(k),
    "map_at_k": lambda ties, k: ties.average_precision(k) * ties.counts / np.minimum(ties.counts, k),
    "ndcg": lambda ties, k: ties.ndcg(k),
    "mrr": lambda ties, k: ties.reciprocal_rank(),
    "r_precision": lambda ties, k: ties.precision(ties.counts),
    "map_at_r": lambda ties, k: ties.average_precision(ties.counts),
    "map": lambda ties, k: ties.average_precision(int(np.iinfo(np.int64).max)),
}
"""By the name of the metric in :data:`retrieval_bench.evaluation.metrics.METRICS`."""
