"""Exact nearest neighbours with FAISS."""

from __future__ import annotations

import faiss
import numpy as np

from retrieval_bench.errors import UserError


def unit_rows(vectors: np.ndarray, what: str = "embeddings") -> np.ndarray:
    """float64 copy of (N, D) `vectors` with rows of length 1; raises :class:`UserError` naming the first row that has no direction."""
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        raise UserError(f"{what}: expected numbers of shape (images, dimensions), found {vectors.dtype} {vectors.shape}")
    rows = vectors.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise UserError(f"{what}: row {bad[0]} has NaN or infinite values ({len(bad)} such rows)")
    scale = np.abs(rows).max(axis=1, initial=0.0)
    empty = np.flatnonzero(scale == 0)
    if len(empty):
        raise UserError(f"{what}: row {empty[0]} is a zero vector, which has no cosine similarity ({len(empty)} such rows)")
    rows /= scale[:, None]  # first to a largest value of 1, so that squares neither overflow nor vanish
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def nearest(queries: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k gallery rows of largest inner product for each query, by FAISS flat search in float32.

    Args:
        queries: (Q, D), unit rows.
        gallery: (G, D), unit rows.
        k: at most G are returned.

    Returns:
        similarities float32 (Q, k) descending, and indices int64 (Q, k).
    """
    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(np.ascontiguousarray(gallery, dtype=np.float32))  # pyright: ignore[reportCallIssue]
    return index.search(np.ascontiguousarray(queries, dtype=np.float32), min(k, len(gallery)))  # pyright: ignore[reportCallIssue]
