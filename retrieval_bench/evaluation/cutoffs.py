"""The K of Recall@K."""

from __future__ import annotations

from retrieval_bench.errors import UserError


def check_ks(ks: tuple[int, ...]) -> None:
    """Raises :class:`UserError` unless `ks` are distinct whole numbers from 1 up."""
    if not ks or min(ks) < 1 or len(set(ks)) < len(ks):
        raise UserError(f"--k {' '.join(map(str, ks))}: give distinct whole numbers from 1 up")
