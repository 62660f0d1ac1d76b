"""The engine of protocols with grades and junk: some queries at a time, all their scores, ranks of what is relevant.

The rules are those of :mod:`retrieval_bench.evaluation.ranking`; junk has no rank. Among items of equal score the lower
grade ranks first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from retrieval_bench.evaluation.metrics import EVERY_RANK, Ranking
from retrieval_bench.evaluation.relevance import Relevance
from retrieval_bench.evaluation.vectors import Vectors, chunks, tolerance

NUMBERS = 1 << 24
"""Scores that are computed at once."""
Scores = Callable[[slice], np.ndarray]
"""float64 (n, G) of some queries: larger is nearer."""


def portions(count: int, width: int) -> list[slice]:
    """Consecutive rows of at most about :data:`NUMBERS` numbers, `width` each."""
    step = max(1, NUMBERS // max(1, width))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def similarity_scores(queries: Vectors, gallery: Vectors) -> Scores:
    """Similarities by products of float64."""

    def scores(part: slice) -> np.ndarray:
        left = queries.factors(part, "query", np.float64)
        parts = chunks(len(gallery), gallery.width)
        products = [left @ gallery.factors(rows, "gallery", np.float64).T for rows in parts]
        return np.minimum(gallery.similarity(np.concatenate([np.empty((len(left), 0)), *products], axis=1)), 0.0)

    return scores


def graded_rankings(
    scores: Scores, relevance: Relevance, size: tuple[int, int], confidence: np.ndarray, margin: float, bounds: bool
) -> Iterator[tuple[Ranking, Ranking]]:
    """Rankings of some queries after others: with the lower grades first among equals, and with the higher ones first
    (the same one unless `bounds`).

    Args:
        scores: of some queries.
        relevance: grades and junk.
        size: how many queries and items there are.
        confidence: float64 (Q,), filled in: the score of each query's nearest item that is not junk, -inf for none.
        margin: scores that differ by less are equal.
        bounds: whether the second ranking is wanted.
    """
    for part in portions(*size):
        rows = list(zip(scores(part), relevance(part), strict=True))
        confidence[part] = [score[grade >= 0].max(initial=-np.inf) for score, grade in rows]
        ranking = partial(_ranking, rows, part.start, margin)
        worst = ranking(False)
        yield worst, ranking(True) if bounds else worst


def _ranking(rows: list[tuple[np.ndarray, np.ndarray]], start: int, margin: float, flattering: bool) -> Ranking:
    """The ranking of consecutive queries' scores and grades, without queries that have nothing relevant."""
    found = [rank_relevant(*row, margin, flattering) for row in rows]
    counts = np.array([len(ranks) for ranks, _ in found], dtype=np.int64)
    asked = np.flatnonzero(counts)
    ranks, grades = (np.concatenate(side) for side in zip(*found, strict=True))
    return Ranking(start + asked, counts[asked], np.full(len(asked), EVERY_RANK), ranks, grades)


def rank_relevant(
    scores: np.ndarray, grades: np.ndarray, margin: float = 0.0, flattering: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """int64 (R,): ascending ranks from 1 of one query's relevant items among those that are not junk; float64 (R,):
    their grades in that order. `scores` and `grades` are (G,)."""
    others, relevant = np.sort(scores[grades == 0]), grades > 0
    order = np.argsort(-scores[relevant], kind="stable")
    score, grade = scores[relevant][order], grades[relevant][order]
    equal = margin + tolerance(score)
    level = np.cumsum(-np.diff(score, prepend=np.inf) > equal)
    order = np.lexsort((-grade if flattering else grade, level))
    before = len(others) - np.searchsorted(others, (score + equal if flattering else score - equal)[order])
    return np.maximum.accumulate(before) + np.arange(1, len(order) + 1), grade[order]
