"""What can be asked of the evaluator: metrics, engines, and the K of Recall@K. Needs no torch."""

from __future__ import annotations

from typing import Literal

from retrieval_bench.errors import UserError

Metric = Literal["recall", "mrr", "r_precision", "map_at_r", "precision", "map", "curve", "clustering", "health"]
Engine = Literal["auto", "blocked", "flat", "ivf", "hnsw"]
DEFAULT_METRICS: tuple[Metric, ...] = ("recall", "mrr", "r_precision", "map_at_r")


def check_ks(ks: tuple[int, ...]) -> None:
    """Raises :class:`UserError` unless `ks` are distinct whole numbers from 1 up."""
    if not ks or any(int(k) != k for k in ks) or min(ks) < 1 or len(set(ks)) < len(ks):
        raise UserError(f"--k {' '.join(map(str, ks))}: give distinct whole numbers from 1 up")


def check_first(ks: tuple[int, ...]) -> None:
    """Raises :class:`UserError` unless 1 is among `ks`: choices on validation classes are made by Recall@1."""
    if 1 not in ks:
        raise UserError(f"--k {' '.join(map(str, ks))}: choices are made by Recall@1, so 1 must be among them")
