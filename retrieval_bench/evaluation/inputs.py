"""What people call embeddings and labels, as plain arrays: lists, tensors, frames, text, categories."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import torch

from retrieval_bench.errors import UserError, first_line


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


def as_tuple(values: Any) -> tuple[Any, ...]:
    """Several values, or a single one."""
    return tuple(values) if isinstance(values, Iterable) and not isinstance(values, str) else (values,)
