"""Recall@K from its definition: exact rational arithmetic on small integer vectors, one query at a time."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

Vector = Sequence[int]


def squared_cosine(a: Vector, b: Vector) -> Fraction:
    """The cosine similarity squared, with the sign of the cosine: ordered as the cosine is, and exact."""
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    square = Fraction(dot * dot, sum(x * x for x in a) * sum(x * x for x in b))
    return square if dot >= 0 else -square


def recall_at_k(
    gallery: Sequence[Vector],
    labels: Sequence[int],
    k: int,
    queries: Sequence[Vector] | None = None,
    query_labels: Sequence[int] | None = None,
    itself: Sequence[int] | None = None,
) -> float | None:
    """Share of the queries that have a positive and find one among their k nearest; negatives first among equals. None without queries.

    `itself` holds the gallery item that is the query and so not its neighbour, -1 for none.
    """
    self_retrieval = queries is None or query_labels is None
    asked = list(zip(gallery, labels, strict=True)) if self_retrieval else list(zip(queries or (), query_labels or (), strict=True))
    hits = []
    for row, (query, label) in enumerate(asked):
        others = [index for index in range(len(gallery)) if index != (row if self_retrieval else itself[row] if itself else -1)]
        ranked = sorted(others, key=lambda index: (-squared_cosine(query, gallery[index]), labels[index] == label))
        if any(labels[index] == label for index in others):
            hits.append(any(labels[index] == label for index in ranked[:k]))
    return sum(hits) / len(hits) if hits else None
