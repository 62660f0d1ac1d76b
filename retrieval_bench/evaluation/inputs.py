"""What people call embeddings and labels, as plain arrays: lists, tensors, frames, text, categories; both sides of a
search from them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import torch

from retrieval_bench.errors import UserError, first_line
from retrieval_bench.evaluation.vectors import Distance, Vectors, as_vectors


def as_array(values: Any, name: str) -> np.ndarray:
    """An array of `values`: also of tensors (bfloat16, on a GPU or with gradients).

    Raises:
        UserError: no array, rows of different lengths, or masked elements.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
    if np.ma.is_masked(values):
        raise UserError(f"{name}: {np.ma.count_masked(values)} elements are masked; leave out their rows")
    try:
        array = np.asanyarray(values.data if isinstance(values, np.ma.MaskedArray) else values)
        array = np.asarray(array) if isinstance(array, np.matrix) else array  # whose rows stay matrices
        return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{name}: not an array of plain numbers or text ({first_line(error)})") from None


def as_rows(embeddings: Any, name: str) -> np.ndarray:
    """:func:`as_array`, also of objects that are numbers or vectors."""
    array = as_array(embeddings, name)
    if array.dtype != object or array.ndim == 0:
        return array
    try:
        return np.array([np.asarray(row).tolist() for row in array])
    except ValueError as error:
        raise UserError(f"{name}: not an array of plain numbers or text ({first_line(error)})") from None


def as_labels(labels: Any, name: str, count: int | None = None) -> np.ndarray:
    """(N,) numbers or text, also of categories and objects; bytes are read as UTF-8. If `count` is given, so many.

    Raises:
        UserError: other kinds, text beside numbers, real numbers that stand for several whole ones, or a label that is
            missing or empty, with its row.
    """
    array = as_array(labels, name)
    if isinstance(labels, list | tuple) and array.ndim == 1 and array.dtype.kind in "US":
        array = np.array(labels, dtype=object)  # NumPy made text of numbers and of None beside text
    if count is not None and array.shape != (count,):
        raise UserError(f"{name}: expected shape ({count},) to match its embeddings, found {array.shape}")
    if array.dtype.kind in "OT" and array.ndim == 1:
        if (missing := pd.isna(array)).any():
            row = int(missing.argmax())
            raise UserError(f"{name}: expected whole numbers or text, row {row} has none ({missing.sum()} such rows)")
        kinds = {kind for kind in (str, bytes) if any(isinstance(label, kind) for label in array)}
        alike = not kinds or (len(kinds) == 1 and all(isinstance(label, tuple(kinds)) for label in array))
        with suppress(ValueError):  # what stays an array of objects is refused below
            plain = np.array(array.tolist())
            array = plain if alike and plain.shape == array.shape else array
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "surrogateescape")
    if array.dtype.kind not in "iubfU" or (array.dtype.kind == "f" and not np.isfinite(array).all()):
        found = "objects of other kinds" if array.dtype == object else f"{array.dtype} (or non-finite values)"
        raise UserError(f"{name}: expected whole numbers or text, found {found}")
    if array.dtype.kind == "f" and np.abs(array).max(initial=0) >= (exact := 2 / np.finfo(array.dtype.name).eps):
        raise UserError(f"{name}: {array.dtype} numbers of {exact:,.0f} or more merge with others; give whole numbers")
    if array.dtype.kind == "U" and (empty := array == "").any():
        raise UserError(f"{name}: row {int(empty.argmax())} has no label ({empty.sum()} such rows); leave them out")
    return array


def split_labels(labels: np.ndarray) -> Any:
    """Labels of rows that may have several, written as ``a|b``, as lists; others as they are."""
    if labels.ndim != 1 or labels.dtype.kind != "U" or not (np.strings.find(labels, "|") >= 0).any():
        return labels
    return [[label.strip() for label in row.split("|") if label.strip()] for row in labels.tolist()]


def as_tuple(values: Any) -> tuple[Any, ...]:
    """Several values, or a single one."""
    return tuple(values) if isinstance(values, Iterable) and not isinstance(values, str) else (values,)


def prepare_sides(
    embeddings: Any, query_embeddings: Any, same_item: Any, distance: Distance
) -> tuple[Vectors, Vectors, np.ndarray]:
    """Checked queries and gallery (one object in self-retrieval), and int64 (Q,) the row of the gallery that is each
    query itself, -1 for none.

    Raises:
        UserError: embeddings that cannot be compared, or rows that there are not.
    """
    embeddings = as_rows(embeddings, "embeddings")
    if query_embeddings is None:
        if same_item is not None:
            raise UserError("same_item: without query_embeddings every row is its own query, and is left out by itself")
        (gallery,) = as_vectors({"embeddings": embeddings}, distance)
        return gallery, gallery, np.arange(len(gallery))
    given = {"query_embeddings": as_rows(query_embeddings, "query_embeddings"), "embeddings": embeddings}
    queries, gallery = as_vectors(given, distance)
    rows = np.full(len(queries), -1) if same_item is None else as_array(same_item, "same_item")
    inside = rows.shape == (len(queries),) and rows.dtype.kind in "iu"
    if not inside or (len(rows) and not -1 <= rows.min() <= rows.max() < len(gallery)):
        wanted = f"expected {len(queries)} row numbers of embeddings (-1 to {len(gallery) - 1})"
        raise UserError(f"same_item: {wanted}, found {rows.dtype} {rows.shape}")
    return queries, gallery, rows.astype(np.int64)


def label_codes(
    labels: Any, query_labels: Any, counts: tuple[int, int], name: str = "labels"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of the queries, and labels of queries and gallery as numbers that are equal where labels are.

    Args:
        labels: of the gallery, and of the queries where `query_labels` is None.
        query_labels: of the queries.
        counts: how many queries and items there are.
        name: of the labels in messages.

    Raises:
        UserError: as :func:`as_labels` does, or sides that cannot be compared.
    """
    names = asked = as_labels(labels, name, counts[1])
    if query_labels is not None:
        asked = as_labels(query_labels, f"query_{name}", counts[0])
    forms = {{"U": "text", "b": "truth values"}.get(side.dtype.kind, "numbers") for side in (names, asked)}
    if len(forms) > 1:
        one, other = sorted(forms, reverse=True)
        raise UserError(f"{name} and query_{name}: one is {one} and the other {other}; give both in the same form")
    become_floats = names.dtype != asked.dtype and np.result_type(names, asked).kind == "f"
    if become_floats and max(np.abs(side.astype(np.float64)).max(initial=0.0) for side in (names, asked)) >= 2.0**53:
        kinds = f"{names.dtype} and {asked.dtype} numbers above 2^53"
        raise UserError(f"{name} and query_{name}: {kinds}; give both in the same type")
    codes = np.unique(np.concatenate([names, asked]), return_inverse=True)[1]
    return asked, codes[len(names) :], codes[: len(names)]
