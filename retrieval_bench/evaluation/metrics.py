"""Recall@K, exact on every tie.

Recall@K is the share of queries with at least one item of their class among their K nearest (Jegou, Douze and Schmid, TPAMI 2011; in
metric learning since Song et al., CVPR 2016). It depends on one number per query: how many negatives rank before the best positive.
A negative whose similarity equals the best positive's ranks before it, so ties never flatter. Similarities within ``TIE`` are equal:
that is far above the rounding of float64 and far below what float32 embeddings can express.
"""

from __future__ import annotations

import numpy as np

from retrieval_bench.evaluation.search import nearest

TIE = 1e-12
PIECE = 1 << 24
"""Numbers that are gathered at once, which bounds memory."""
FLOAT32_ERROR = 2.0**-22
"""Bound per dimension on the error of a float32 inner product of unit vectors rounded to float32; FAISS's ranking is trusted beyond it."""


def negatives_ahead(
    queries: np.ndarray, query_labels: np.ndarray, gallery: np.ndarray, gallery_labels: np.ndarray, limit: int, itself: np.ndarray
) -> np.ndarray:
    """How many negatives rank before each query's best positive, counted up to `limit`.

    FAISS finds the candidates in float32; every decision is then made in float64, and a query whose best positive is closer to the end of
    its candidate list than float32 can tell is counted over the whole gallery. The result is that of a float64 computation.

    Args:
        queries: float64 (Q, D), unit rows.
        query_labels: (Q,).
        gallery: float64 (G, D), unit rows; in self-retrieval the same array as `queries`.
        gallery_labels: (G,).
        limit: counts stop here; Recall@K needs ``limit >= K``.
        itself: int64 (Q,), the gallery item that is the query itself and not its neighbour (left out by index, never by position); -1
            for none.

    Returns:
        int64 (Q,) in 0..limit, or -1 for a query that has no positive in the gallery.
    """
    best = _best_positive(queries, query_labels, gallery, gallery_labels, itself)
    answerable = np.flatnonzero(best > -np.inf)
    ahead = np.full(len(queries), -1, dtype=np.int64)
    if not len(answerable):
        return ahead
    found, index = nearest(queries[answerable], gallery, limit + 1 + bool((itself >= 0).any()))
    similarity = gathered_products(queries[answerable], gallery, index)
    negative = gallery_labels[index] != query_labels[answerable, None]
    ahead[answerable] = (negative & (similarity >= best[answerable, None] - TIE)).sum(axis=1)
    if index.shape[1] < len(gallery):
        margin = FLOAT32_ERROR * gallery.shape[1]
        unsure = answerable[best[answerable] - found[:, -1] <= margin]
        unsure = unsure[ahead[unsure] < limit]
        for start in range(0, len(unsure), 64):
            rows = unsure[start : start + 64]
            against = queries[rows] @ gallery.T >= best[rows, None] - TIE
            ahead[rows] = (against & (gallery_labels[None] != query_labels[rows, None])).sum(axis=1)
    return np.minimum(ahead, limit)


def recall_at_k(ahead: np.ndarray, ks: tuple[int, ...]) -> dict[int, float]:
    """Recall@K for each K as a fraction, over the queries that have a positive.

    Args:
        ahead: int64 (Q,) from :func:`negatives_ahead` with ``limit >= max(ks)``.
        ks: the values of K.
    """
    counted = ahead[ahead >= 0]
    return {k: float((counted < k).mean()) if len(counted) else float("nan") for k in ks}


def _best_positive(
    queries: np.ndarray, query_labels: np.ndarray, gallery: np.ndarray, gallery_labels: np.ndarray, itself: np.ndarray
) -> np.ndarray:
    """float64 (Q,): similarity of the nearest gallery item of the query's class, -inf where there is none."""
    best = np.full(len(queries), -np.inf)
    query_order, gallery_order = np.argsort(query_labels, kind="stable"), np.argsort(gallery_labels, kind="stable")
    for label in np.unique(query_labels):
        asked = query_order[slice(*_range(query_labels, query_order, label))]
        items = gallery_order[slice(*_range(gallery_labels, gallery_order, label))]
        if not len(items):
            continue
        step = max(1, PIECE // len(items))
        for rows in (asked[start : start + step] for start in range(0, len(asked), step)):
            similarity = queries[rows] @ gallery[items].T
            similarity[itself[rows, None] == items[None]] = -np.inf
            best[rows] = similarity.max(axis=1)
    return best


def _range(labels: np.ndarray, order: np.ndarray, label: np.generic) -> tuple[int, int]:
    first, last = (int(np.searchsorted(labels, label, side=side, sorter=order)) for side in ("left", "right"))
    return first, last


def gathered_products(queries: np.ndarray, gallery: np.ndarray, index: np.ndarray) -> np.ndarray:
    """float64 (Q, K) inner products of each query with its own candidates, in pieces of bounded size."""
    out = np.empty(index.shape)
    step = max(1, (PIECE) // (index.shape[1] * gallery.shape[1]))
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        out[rows] = np.einsum("qd,qkd->qk", queries[rows], gallery[index[rows]])
    return out
