"""Expanded queries and k-reciprocal re-ranking from their definitions, one row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def expand(query: np.ndarray, gallery: np.ndarray, k: int, alpha: float) -> np.ndarray:
    """A unit row plus its k nearest unit rows, weighted by their similarity to the power of alpha."""
    nearest = sorted(gallery, key=lambda row: -float(query @ row))[:k]
    return query + sum((max(float(query @ row), 0) ** alpha * row for row in nearest), start=np.zeros_like(query))


def k_reciprocal(rows: np.ndarray, queries: Sequence[int], items: Sequence[int], k1: int, k2: int, weight: float):
    """Distances (queries, items), by the numbers of `rows`: Zhong et al., CVPR 2017, equations 2 to 12."""
    squares = np.square(rows[:, None] - rows[None]).sum(axis=2)
    distance = squares / squares.max(axis=1, keepdims=True)
    order = [[row, *(other for other in np.argsort(squares[row]) if other != row)] for row in range(len(rows))]

    @cache
    def nearest(row: int, k: int) -> set[int]:
        return set(map(int, order[row][: k + 1]))  # k without the row itself

    @cache
    def reciprocal(row: int, k: int) -> set[int]:
        return {other for other in nearest(row, k) if row in nearest(other, k)}

    codes = np.zeros((len(rows), len(rows)))
    for row in range(len(rows)):
        members = reciprocal(row, k1)
        for other in reciprocal(row, k1):
            half = reciprocal(other, round(k1 / 2))
            if 3 * len(half & reciprocal(row, k1)) > 2 * len(half):
                members = members | half
        for member in members:
            codes[row, member] = np.exp(-distance[row, member])
        codes[row] /= codes[row].sum()
    codes = np.array([codes[order[row][:k2]].mean(axis=0) for row in range(len(rows))])
    found = np.empty((len(queries), len(items)))
    for place, query in enumerate(queries):
        for column, item in enumerate(items):
            both = np.minimum(codes[query], codes[item]).sum(), np.maximum(codes[query], codes[item]).sum()
            found[place, column] = (1 - weight) * (1 - both[0] / both[1]) + weight * distance[query, item]
    return found
