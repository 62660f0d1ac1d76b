"""The evaluator as one function: anyone's embeddings and labels to metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from retrieval_bench.errors import UserError, first_line
from retrieval_bench.evaluation.cutoffs import check_ks
from retrieval_bench.evaluation.metrics import negatives_ahead, recall_at_k
from retrieval_bench.evaluation.search import unit_rows


def evaluate(
    embeddings: np.ndarray,
    labels: np.ndarray,
    query_embeddings: np.ndarray | None = None,
    query_labels: np.ndarray | None = None,
    same_item: np.ndarray | None = None,
    ks: tuple[int, ...] = (1, 2, 4, 8),
) -> dict[str, Any]:
    """Retrieval metrics under cosine similarity.

    Args:
        embeddings: (N, D) of any float type, not necessarily normalised; the gallery, and without queries also the queries.
        labels: (N,) class of each row, numbers or strings.
        query_embeddings: (Q, D), searched in the gallery; None searches each row among all the others.
        query_labels: (Q,).
        same_item: int (Q,), the row of `embeddings` that is the query itself and so not its neighbour, -1 for none; None if no query is
            in the gallery. Not given without queries.
        ks: the K of Recall@K; a K beyond the gallery counts every query that has a positive.

    Returns:
        ``recall_at_<K>`` as fractions over the queries that have a positive, ``queries`` (how many those are) and
        ``queries_without_positive`` (left out).

    Raises:
        UserError: shapes that do not fit, NaN, infinite or zero rows (with their number), or no query with a positive.
    """
    check_ks(ks)
    if (query_embeddings is None) != (query_labels is None):
        raise UserError("query_embeddings and query_labels come together: one of them is missing")
    gallery, gallery_labels = unit_rows(embeddings), _labels(labels, len(embeddings), "labels")
    queries, asked, itself = gallery, gallery_labels, np.arange(len(gallery))
    if query_embeddings is not None and query_labels is not None:
        queries = unit_rows(query_embeddings, "query_embeddings")
        asked = _labels(query_labels, len(queries), "query_labels")
        if queries.shape[1] != gallery.shape[1]:
            raise UserError(f"query_embeddings have {queries.shape[1]} dimensions, embeddings have {gallery.shape[1]}")
        itself = np.full(len(queries), -1) if same_item is None else _same_item(same_item, len(queries), len(gallery))
    elif same_item is not None:
        raise UserError("same_item: without query_embeddings every row is its own query, and is left out by itself")
    if (gallery_labels.dtype.kind in "US") != (asked.dtype.kind in "US"):
        raise UserError("labels and query_labels: one is text and the other numbers; give both in the same form")
    codes = np.unique(np.concatenate([gallery_labels, asked]), return_inverse=True)[1]
    ahead = negatives_ahead(queries, codes[len(gallery) :], gallery, codes[: len(gallery)], max(ks), itself)
    answerable = int((ahead >= 0).sum())
    if not answerable:
        raise UserError("no query has an item of its class in the gallery: every class needs two images (or one in the gallery)")
    recalls = {f"recall_at_{k}": value for k, value in recall_at_k(ahead, ks).items()}
    return {**recalls, "queries": answerable, "queries_without_positive": len(ahead) - answerable}


def evaluate_file(path: Path, ks: tuple[int, ...]) -> dict[str, Any]:
    """:func:`evaluate` on an ``.npz`` file with ``embeddings``, ``labels`` and optional ``query_embeddings``, ``query_labels``.

    Raises:
        UserError: the file is missing, damaged, holds pickled objects or lacks an array.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            known = {name: arrays[name] for name in ("embeddings", "labels", "query_embeddings", "query_labels") if name in arrays}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # a damaged file makes NumPy and zipfile raise a dozen types
        raise UserError(f"{path}: not an .npz file of plain arrays ({first_line(error)})") from None
    for name in ("embeddings", "labels"):
        if name not in known:
            raise UserError(f"{path}: array '{name}' is missing (save with np.savez(path, embeddings=..., labels=...))")
    return evaluate(**known, ks=ks)


def _same_item(rows: Any, queries: int, gallery: int) -> np.ndarray:
    rows = np.asarray(rows)
    if rows.shape != (queries,) or rows.dtype.kind not in "iu" or (len(rows) and not -1 <= rows.min() <= rows.max() < gallery):
        raise UserError(f"same_item: expected {queries} row numbers of embeddings (-1 to {gallery - 1}), found {rows.dtype} {rows.shape}")
    return rows.astype(np.int64)


def _labels(labels: Any, count: int, what: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (count,):
        raise UserError(f"{what}: expected shape ({count},) to match its embeddings, found {labels.shape}")
    if labels.dtype.kind not in "iubfUS" or (labels.dtype.kind == "f" and not np.isfinite(labels).all()):
        raise UserError(f"{what}: expected whole numbers or text, found {labels.dtype} (or values that are not finite)")
    return labels
