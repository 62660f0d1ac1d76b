"""Retrieval metrics, query by query, all from one result: how many negatives rank before each positive.

With a_1 <= a_2 <= ... <= a_R the negatives before the best, second best, ... of a query's R positives, positive i stands at rank i + a_i.
A negative as similar as a positive ranks before it, so ties never flatter; the order among equal positives changes no metric.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ranking:
    """Ranks of the positives of Q queries that have at least one.

    Attributes:
        query: int64 (Q,), row number of each query.
        counts: int64 (Q,), number of positives R, at least 1.
        ranks: int64 (sum of R,), ranks of each query's positives from 1, ascending, query after query. A rank beyond the depth that was
            asked for is only known to be beyond it.
    """

    query: np.ndarray
    counts: np.ndarray
    ranks: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """int64 (Q,): where each query's ranks begin."""
        return np.cumsum(self.counts) - self.counts

    @property
    def place(self) -> np.ndarray:
        """int64 (sum of R,): 1 for a query's best positive, 2 for the next, ..."""
        return np.arange(len(self.ranks)) - np.repeat(self.starts, self.counts) + 1

    def per_query(self, values: np.ndarray) -> np.ndarray:
        """float64 (Q,): sums of `values` (one per positive) over each query's positives."""
        return np.add.reduceat(values.astype(np.float64), self.starts) if len(self.counts) else np.empty(0)


def recall_at_k(ranking: Ranking, k: int) -> np.ndarray:
    """float64 (Q,): 1 if any of the K nearest is a positive, else 0 (Jegou, Douze and Schmid, TPAMI 2011; Song et al., CVPR 2016)."""
    return (ranking.ranks[ranking.starts] <= k).astype(np.float64)


def reciprocal_rank(ranking: Ranking) -> np.ndarray:
    """float64 (Q,): 1 / rank of the best positive; its mean is the MRR (Voorhees, TREC-8, 1999)."""
    return 1.0 / ranking.ranks[ranking.starts]


def r_precision(ranking: Ranking) -> np.ndarray:
    """float64 (Q,): share of positives among the R nearest (Musgrave, Belongie and Lim, ECCV 2020)."""
    return ranking.per_query(ranking.ranks <= np.repeat(ranking.counts, ranking.counts)) / ranking.counts


def map_at_r(ranking: Ranking) -> np.ndarray:
    """float64 (Q,): (1/R) times the sum, over positives among the R nearest, of the precision at their rank (same source)."""
    inside = ranking.ranks <= np.repeat(ranking.counts, ranking.counts)
    return ranking.per_query(inside * ranking.place / ranking.ranks) / ranking.counts


def precision_at_k(ranking: Ranking, k: int) -> np.ndarray:
    """float64 (Q,): share of positives among the K nearest. Needs ranks of all depths."""
    return ranking.per_query(ranking.ranks <= k) / k


def average_precision(ranking: Ranking) -> np.ndarray:
    """float64 (Q,): mean over all positives of the precision at their rank; its mean is the mAP. Needs ranks of all depths."""
    return ranking.per_query(ranking.place / ranking.ranks) / ranking.counts


def precision_recall_curve(ranking: Ranking, levels: int = 101) -> np.ndarray:
    """Interpolated precision at evenly spaced recalls (Manning, Raghavan and Schütze, Introduction to Information Retrieval, 2008, 8.4).

    At recall r: the largest precision at any rank where the query's recall is at least r, averaged over queries. Needs ranks of all depths.

    Returns:
        float64 (levels, 2): recall from 0 to 1, precision.
    """
    precision = ranking.place / ranking.ranks
    recalls = np.linspace(0, 1, levels)
    total = np.zeros(levels)
    for start, count in zip(ranking.starts, ranking.counts, strict=True):
        best = np.maximum.accumulate(precision[start : start + count][::-1])[::-1]
        needed = np.ceil(recalls * count - 1e-9).astype(int).clip(1) - 1
        total += best[needed]
    return np.stack([recalls, total / max(1, len(ranking.counts))], axis=1)
