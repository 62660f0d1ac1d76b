"""Labels and row numbers as they are given: what can be compared, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np

from retrieval_bench.errors import UserError


def check_alike(names: np.ndarray, asked: np.ndarray) -> None:
    """Refuses labels of two kinds, or of two number types that only meet in floats which cannot hold them."""
    if (names.dtype.kind == "U") != (asked.dtype.kind == "U"):
        raise UserError("labels and query_labels: one is text and the other numbers; give both in the same form")
    if names.dtype.kind != "U" and np.result_type(names, asked).kind == "f":
        largest = max(float(np.abs(values.astype(np.float64)).max(initial=0.0)) for values in (names, asked))
        if largest >= 2.0**53 and names.dtype != asked.dtype:
            raise UserError(
                f"labels and query_labels: {names.dtype} and {asked.dtype} numbers above 2^53; give both in the same type"
            )


def as_rows(rows: Any, queries: int, gallery: int) -> np.ndarray:
    """int64 (Q,) row numbers, -1 for none; refuses anything else."""
    rows = np.asarray(rows)
    if (
        rows.shape != (queries,)
        or rows.dtype.kind not in "iu"
        or (len(rows) and not -1 <= rows.min() <= rows.max() < gallery)
    ):
        raise UserError(
            f"same_item: expected {queries} row numbers of embeddings (-1 to {gallery - 1}), found {rows.dtype} {rows.shape}"
        )
    return rows.astype(np.int64)


def as_labels(labels: Any, count: int, what: str) -> np.ndarray:
    """(N,) numbers or text (bytes are read as UTF-8); refuses other shapes and kinds, and numbers that are not finite."""
    labels = np.asarray(labels)
    if labels.shape != (count,):
        raise UserError(f"{what}: expected shape ({count},) to match its embeddings, found {labels.shape}")
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "surrogateescape")
    if labels.dtype.kind not in "iubfU" or (labels.dtype.kind == "f" and not np.isfinite(labels).all()):
        raise UserError(f"{what}: expected whole numbers or text, found {labels.dtype} (or values that are not finite)")
    return labels
