"""Retrieval metrics, query by query, all from one result: the ranks of each query's positives.

A positive's rank is one more than the number of items before it. A negative as similar as a positive ranks before it,
so ties never flatter; the order among equal positives changes no metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from retrieval_bench.errors import UserError

PerQuery = Literal["recall", "mrr", "r_precision", "map_at_r", "precision", "map_at_k", "ndcg", "map", "map_trapezoid"]
MetricName = Literal[PerQuery, "gap", "curve", "clustering", "health"]
DEFAULT_METRICS: tuple[MetricName, ...] = ("recall", "mrr", "r_precision", "map_at_r")
Needs = Literal["first", "top", "k", "all"]
"""Exact ranks: of each query's best positive; also of every positive among the R nearest, or among the K nearest; of
every positive."""
EVERY_RANK = int(np.iinfo(np.int64).max)


def depths(needs: Iterable[Needs], counts: np.ndarray, k: int) -> np.ndarray:
    """int64 (Q,): up to which rank all ranks are exact, of queries with R = `counts` positives; 0 for the best's."""
    found, depth_of = np.zeros_like(counts), {"first": 0, "top": counts, "k": k, "all": EVERY_RANK}
    for need in needs:
        found = np.maximum(found, depth_of[need])
    return found


@dataclass(frozen=True)
class Ranking:
    """Ranks of the positives of Q queries that have at least one."""

    query: np.ndarray
    """int64 (Q,): row number of each query."""
    counts: np.ndarray
    """int64 (Q,): number of positives R, at least 1."""
    depth: np.ndarray
    """int64 (Q,): up to which rank all ranks are exact, beside the best positive's; others are known to be larger."""
    ranks: np.ndarray
    """int64 (sum of kept,): ranks of each query's best positives from 1, ascending, query after query."""
    grades: np.ndarray | None = None
    """float64 (sum of kept,): how relevant the positive at each rank is; None where all are alike."""

    @property
    def kept(self) -> np.ndarray:
        """int64 (Q,): how many positives have a rank here: those that may rank within the depth, and the best one."""
        return np.minimum(self.counts, np.maximum(self.depth, 1))

    @property
    def starts(self) -> np.ndarray:
        """int64 (Q,): where each query's ranks begin."""
        return np.cumsum(self.kept) - self.kept

    @property
    def hits(self) -> np.ndarray:
        """int64 (sum of R,): 1 for a query's best positive, 2 for the next, ...: positives found at that rank."""
        return np.arange(len(self.ranks)) - np.repeat(self.starts, self.kept) + 1

    def per_query(self, values: np.ndarray) -> np.ndarray:
        """float64 (Q,): sums of `values` (one per positive) over each query's positives."""
        return np.add.reduceat(values.astype(np.float64), self.starts) if len(self.counts) else np.empty(0)


def recall_at_k(ranking: Ranking, k: int) -> np.ndarray:
    """float64 (Q,): 1 if one of the K nearest is a positive (Jegou et al., TPAMI 2011; Song et al., CVPR 2016)."""
    return (ranking.ranks[ranking.starts] <= k).astype(np.float64)


def reciprocal_rank(ranking: Ranking) -> np.ndarray:
    """float64 (Q,): 1 / rank of the best positive; its mean is the MRR (Voorhees, TREC-8, 1999)."""
    return 1.0 / ranking.ranks[ranking.starts]


def r_precision(ranking: Ranking) -> np.ndarray:
    """float64 (Q,): share of positives among the R nearest (Musgrave, Belongie and Lim, ECCV 2020)."""
    return ranking.per_query(ranking.ranks <= np.repeat(ranking.counts, ranking.kept)) / ranking.counts


def map_at_r(ranking: Ranking) -> np.ndarray:
    """float64 (Q,): 1/R times the sum, over positives among the R nearest, of the precision at their rank (ibid.)."""
    inside = ranking.ranks <= np.repeat(ranking.counts, ranking.kept)
    return ranking.per_query(inside * ranking.hits / ranking.ranks) / ranking.counts


def precision_at_k(ranking: Ranking, k: int) -> np.ndarray:
    """float64 (Q,): share of positives among the K nearest."""
    return ranking.per_query(ranking.ranks <= k) / k


def map_at_k(ranking: Ranking, k: int) -> np.ndarray:
    """float64 (Q,): 1 / min(R, K) times the sum, over positives among the K nearest, of the precision at their rank
    (Weyand et al., Google Landmarks Dataset v2, CVPR 2020)."""
    return ranking.per_query((ranking.ranks <= k) * ranking.hits / ranking.ranks) / np.minimum(ranking.counts, k)


def ndcg_at_k(ranking: Ranking, k: int) -> np.ndarray:
    """float64 (Q,): sum, over positives among the K nearest, of grade / log2(rank + 1), divided by that of the best
    order (Järvelin and Kekäläinen, Cumulated Gain-Based Evaluation of IR Techniques, 2002, with the discount of Burges
    et al., ICML 2005); the grade is the gain."""
    grades = np.ones(len(ranking.ranks)) if ranking.grades is None else ranking.grades
    query = np.repeat(np.arange(len(ranking.counts)), ranking.kept)
    ideal = grades[np.lexsort((-grades, query))]
    gains = (
        ranking.per_query(gain * (rank <= k) / np.log2(rank + 1))
        for gain, rank in ((grades, ranking.ranks), (ideal, ranking.hits))
    )
    return np.divide(*gains)


def trapezoid_precision(ranking: Ranking) -> np.ndarray:
    """float64 (Q,): area under precision over recall by the trapezoid rule, as Oxford5k's and Market-1501's programs
    compute it (Philbin et al., CVPR 2007): the mean, over positives, of the precision at and right before them."""
    before = np.where(ranking.ranks > 1, (ranking.hits - 1) / np.maximum(ranking.ranks - 1, 1), 1.0)
    return ranking.per_query((before + ranking.hits / ranking.ranks) / 2) / ranking.counts


def average_precision(ranking: Ranking) -> np.ndarray:
    """float64 (Q,): mean over all positives of the precision at their rank; its mean is the mAP."""
    return ranking.per_query(ranking.hits / ranking.ranks) / ranking.counts


def precision_recall_curve(ranking: Ranking, levels: int = 101) -> np.ndarray:
    """float64 (levels, 2): recall from 0 to 1, and interpolated precision (Manning, Raghavan and Schütze, Introduction
    to Information Retrieval, 2008, 8.4): the largest at any rank with that recall or more, averaged over queries."""
    precision, recalls, total = ranking.hits / ranking.ranks, np.linspace(0, 1, levels), np.zeros(levels)
    for start, count in zip(ranking.starts, ranking.counts, strict=True):
        best = np.maximum.accumulate(precision[start : start + count][::-1])[::-1]
        total += best[np.ceil(recalls * count - 1e-9).astype(int).clip(1) - 1]
    return np.stack([recalls, total / max(1, len(ranking.counts))], axis=1)


@dataclass(frozen=True)
class Metric:
    """A function of a :class:`Ranking` and the ranks that it needs (ValueError for a ranking that lacks them); with
    `per_k` it also takes K, and the metric is named ``<name>_at_<K>``."""

    function: Callable[..., np.ndarray]
    needs: Needs
    per_k: bool = False

    def __call__(self, ranking: Ranking, k: int = 1) -> np.ndarray:
        if (ranking.depth < depths([self.needs], ranking.counts, k)).any():
            raise ValueError(f"{self.function.__name__} needs '{self.needs}' ranks to be exact; the ranking has fewer")
        return self.function(ranking, k) if self.per_k else self.function(ranking)


METRICS: dict[str, Metric] = {
    "recall": Metric(recall_at_k, needs="first", per_k=True),
    "precision": Metric(precision_at_k, needs="k", per_k=True),
    "map_at_k": Metric(map_at_k, needs="k", per_k=True),
    "ndcg": Metric(ndcg_at_k, needs="k", per_k=True),
    "mrr": Metric(reciprocal_rank, needs="first"),
    "r_precision": Metric(r_precision, needs="top"),
    "map_at_r": Metric(map_at_r, needs="top"),
    "map": Metric(average_precision, needs="all"),
    "map_trapezoid": Metric(trapezoid_precision, needs="all"),
}
"""Metrics with a value per query."""
CURVE = Metric(precision_recall_curve, needs="all")


def global_average_precision(confidence: np.ndarray, correct: np.ndarray, possible: int) -> float:
    """One ranking of all queries' best matches by confidence: 1 / `possible` (queries that have a positive) times the
    sum, over correct ones, of the share of correct ones down to there; wrong ones first among equals (Perronnin et al.,
    CVPR 2009; used by Weyand et al., CVPR 2020). Both arrays are (Q,)."""
    correct = correct[np.lexsort((correct, -confidence))]
    return float((correct * np.cumsum(correct) / np.arange(1, len(correct) + 1)).sum() / possible)


def check_ks(ks: tuple[int, ...]) -> tuple[int, ...]:
    """`ks` as they are; raises :class:`UserError` unless they are distinct whole numbers from 1 up."""
    try:
        whole = tuple(int(k) for k in ks)
    except (ValueError, TypeError, OverflowError):
        whole = ()
    if not whole or whole != tuple(ks) or min(whole) < 1 or len(set(whole)) < len(whole):
        raise UserError(f"--k {' '.join(map(str, ks))}: give distinct whole numbers from 1 up")
    return whole
