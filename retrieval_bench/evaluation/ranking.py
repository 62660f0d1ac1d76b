"""The reference engine: one query at a time, every similarity in float64. It says what the faster engines must find.

Engines go from a :class:`RetrievalTask` to the number of negatives before each positive. Three rules decide it:

- Ties never flatter: a negative as similar as a positive ranks before it (behind it where the task says so).
- A query is never its own neighbour; it is left out by its number, not by its similarity, so that copies of it stay.
- float64 decides: two :func:`similarities` that differ by less than :func:`tolerance` are equal.
"""

from __future__ import annotations

import numpy as np

from retrieval_bench.evaluation.retrieval_task import RetrievalTask
from retrieval_bench.evaluation.vectors import similarities


def count_negatives(task: RetrievalTask) -> np.ndarray:
    """int64 (sum of kept,): how many negatives rank before each of a query's best positives, ascending, in the order of
    ``task.query_order``."""
    gallery = task.gallery.rows(task.gallery_order)
    counts = []
    for query, itself in enumerate(task.same_item):
        row = task.queries.rows(task.query_order[query : query + 1])
        similarity = similarities(row, gallery)[0]
        same_class = task.gallery_classes == task.classes[query]
        negatives = np.sort(similarity[~same_class])
        if itself >= 0:
            same_class[itself] = False
        positives = np.sort(similarity[same_class])[::-1][: task.kept[query]]
        counts.append(len(negatives) - np.searchsorted(negatives, task.limits_of(positives)))
    return np.concatenate(counts)


def to_ranks(task: RetrievalTask, negatives_before: np.ndarray) -> np.ndarray:
    """int64 (sum of kept,): ascending ranks from 1 per query; before a positive are its negatives and better
    positives."""
    return negatives_before + task.places(slice(0, len(task.counts))) + 1
