"""Retrieval metrics from their definitions: exact rational similarities, one query at a time, one rank at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

Vector = Sequence[Fraction]


def rational(rows: np.ndarray) -> list[list[Fraction]]:
    """Every number of a machine is a fraction."""
    return [[Fraction(int(value) if rows.dtype.kind in "iu" else float(value)) for value in row] for row in rows]


def cosine(a: Vector, b: Vector) -> Fraction:
    """The cosine similarity squared, with the sign of the cosine: ordered as the cosine is, and exact."""
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    square = Fraction(dot * dot, sum(x * x for x in a) * sum(x * x for x in b))
    return square if dot >= 0 else -square


def l2(a: Vector, b: Vector) -> Fraction:
    """Minus the squared Euclidean distance."""
    return -sum(((x - y) ** 2 for x, y in zip(a, b, strict=True)), start=Fraction(0))


def relevance(
    gallery: np.ndarray,
    labels: Sequence[object],
    queries: np.ndarray | None = None,
    query_labels: Sequence[object] = (),
    itself: Sequence[int] | None = None,
    distance: str = "cosine",
) -> list[list[bool]]:
    """For each query, whether the nearest, second nearest, ... item is a positive; negatives come first among equals.

    `itself` holds the gallery item that is the query and so not its neighbour, -1 for none; without queries each item
    is its own.
    """
    similarity = {"cosine": cosine, "l2": l2}[distance]
    items = rational(gallery)
    if queries is None:
        asked, names, itself = items, labels, range(len(items))
    else:
        asked, names = rational(queries), query_labels
    found = []
    for row, (query, name) in enumerate(zip(asked, names, strict=True)):
        others = [index for index in range(len(items)) if itself is None or index != itself[row]]
        pairs = sorted((-similarity(query, items[index]), bool(labels[index] == name)) for index in others)
        found.append([positive for _, positive in pairs])
    return found


def graded(gallery: np.ndarray, queries: np.ndarray, grades: np.ndarray) -> list[list[float]]:
    """For each query, the grade of the nearest, second nearest, ... item that is not junk (below 0) by the cosine; the
    lower one comes first among equals."""
    items = rational(gallery)
    found = []
    for query, row in zip(rational(queries), grades.tolist(), strict=True):
        pairs = sorted((-cosine(query, item), grade) for item, grade in zip(items, row, strict=True) if grade >= 0)
        found.append([grade for _, grade in pairs])
    return found


def recall_at_k(ranked: list[bool], k: int) -> float:
    """Whether one of the K nearest is a positive."""
    return float(any(ranked[:k]))


def precision_at_k(ranked: list[bool], k: int) -> float:
    """Share of positives among the K nearest."""
    return sum(ranked[:k]) / k


def reciprocal_rank(ranked: list[bool]) -> float:
    """1 / rank of the best positive."""
    return 1 / (1 + ranked.index(True))


def r_precision(ranked: list[bool]) -> float:
    """Share of positives among the R nearest."""
    return precision_at_k(ranked, sum(ranked))


def map_at_r(ranked: list[bool]) -> float:
    """1/R times the sum of the precision at the ranks, up to R, where a positive stands."""
    positives = sum(ranked)
    return sum(precision_at_k(ranked, rank) for rank in range(1, positives + 1) if ranked[rank - 1]) / positives


def average_precision(ranked: list[bool]) -> float:
    """Mean, over all positives, of the precision at their rank."""
    return sum(precision_at_k(ranked, rank) for rank in range(1, len(ranked) + 1) if ranked[rank - 1]) / sum(ranked)


def map_at_k(ranked: list[bool], k: int) -> float:
    """1 / min(R, K) times the sum of the precision at the ranks, up to K, where a positive stands."""
    hits = [precision_at_k(ranked, rank) for rank in range(1, min(k, len(ranked)) + 1) if ranked[rank - 1]]
    return sum(hits) / min(sum(ranked), k)


def dcg(grades: Sequence[float], k: int) -> float:
    """Sum of grade / log2(rank + 1) down to rank K."""
    return sum(grade / math.log2(rank + 1) for rank, grade in enumerate(grades[:k], start=1))


def ndcg_at_k(ranked: Sequence[float], k: int) -> float:
    """The discounted gain of a ranking, of that of the best order."""
    return dcg(ranked, k) / dcg(sorted(ranked, reverse=True), k)


def trapezoid_precision(ranked: list[bool]) -> float:
    """The area under precision over recall, trapezoid after trapezoid, from precision 1 at recall 0."""
    area, before = 0.0, 1.0
    for rank in range(1, len(ranked) + 1):
        precision = precision_at_k(ranked, rank)
        area += ranked[rank - 1] / sum(ranked) * (before + precision) / 2
        before = precision
    return area


def interpolated(ranked: list[bool]) -> list[float]:
    """At recalls of 0, 0.01, ..., 1: the largest precision at any rank where the recall is at least that."""
    points = [(sum(ranked[:rank]), precision_at_k(ranked, rank)) for rank in range(1, len(ranked) + 1)]
    return [
        max(precision for hits, precision in points if 100 * hits >= percent * sum(ranked)) for percent in range(101)
    ]


def metrics(ranked: list[bool], ks: Sequence[int]) -> dict[str, float]:
    """All metrics of one query that has a positive, by the names that the package gives them."""
    return {
        "positives": sum(ranked),
        "first_rank": 1 + ranked.index(True),
        **{f"recall_at_{k}": recall_at_k(ranked, k) for k in ks},
        **{f"precision_at_{k}": precision_at_k(ranked, k) for k in ks},
        **{f"map_at_{k}": map_at_k(ranked, k) for k in ks},
        **{f"ndcg_at_{k}": ndcg_at_k(ranked, k) for k in ks},
        "mrr": reciprocal_rank(ranked),
        "r_precision": r_precision(ranked),
        "map_at_r": map_at_r(ranked),
        "map": average_precision(ranked),
        "map_trapezoid": trapezoid_precision(ranked),
    }
