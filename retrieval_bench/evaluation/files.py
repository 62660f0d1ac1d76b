"""Embeddings and labels from files, and results to files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from retrieval_bench.errors import UserError, first_line
from retrieval_bench.files import atomic_path, check_writable

ARRAYS = ("embeddings", "labels", "query_embeddings", "query_labels")
MISSING = {
    ".npy": "give them with --labels FILE",
    ".npz": "save with np.savez(path, embeddings=..., labels=...)",
    ".parquet": "columns label and embedding",
}


def read_embeddings(path: Path, labels: Path | None = None) -> dict[str, np.ndarray]:
    """``embeddings`` (N, D) and ``labels`` (N,), and ``query_embeddings`` and ``query_labels`` where a file has them.

    Args:
        path: ``.npz`` with arrays of these names; ``.npy`` with (N, D) numbers, which is memory-mapped, not read; or
            ``.parquet`` with a column ``label`` and a column ``embedding`` of lists or a column per dimension.
        labels: ``.npy``, or text with a label per line; needed for ``.npy`` embeddings, instead of the others' own.

    Raises:
        UserError: a file is missing, damaged, holds pickled objects, or lacks an array or column.
    """
    arrays = _read_parquet(path) if path.suffix == ".parquet" else _read_numpy(path)
    if labels is not None:
        arrays["labels"] = read_labels(labels)
    for name in ("embeddings", "labels"):
        if name not in arrays:
            raise UserError(f"{path}: {name} are missing ({MISSING.get(path.suffix, MISSING['.npz'])})")
    return arrays


def read_labels(path: Path) -> np.ndarray:
    """(N,) labels from ``.npy``, or from text with one per line."""
    if path.suffix == ".npy" and "embeddings" in (arrays := _read_numpy(path)):
        return arrays["embeddings"]
    try:
        return np.array(path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path}: not a text file with a label per line ({first_line(error)})") from None


def check_table_name(path: Path) -> None:
    """Raises :class:`UserError` now, rather than after the work, for a table that cannot be written."""
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"{path}: a table is written as .csv or .parquet")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    try:
        check_writable(path.parent)
    except UserError:
        raise UserError(f"{path}: cannot be written there; choose another place") from None


def write_frame(frame: pd.DataFrame, path: Path) -> None:
    """Writes a table as ``.csv`` or ``.parquet``, atomically; refuses Parquet without pyarrow."""
    with atomic_path(path) as temporary:
        if path.suffix == ".csv":
            frame.to_csv(temporary, index=False, lineterminator="\n")
            return
        try:
            frame.to_parquet(temporary, index=False)
        except ImportError:
            reason = "writing Parquet needs the package pyarrow (pip install pyarrow); .csv needs nothing"
            raise UserError(f"{path}: {reason}") from None


def _read_numpy(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file, or the one of an ``.npy`` file as ``embeddings``."""
    try:
        loaded: Any = np.load(path, allow_pickle=False, mmap_mode="r" if path.suffix == ".npy" else None)
        if isinstance(loaded, np.ndarray):
            return {"embeddings": loaded}
        with loaded as arrays:
            return {name: arrays[name] for name in ARRAYS if name in arrays}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # a damaged file makes NumPy and zipfile raise a dozen types
        raise UserError(f"{path}: not an .npz, .npy or .parquet file of plain arrays ({first_line(error)})") from None


def _read_parquet(path: Path) -> dict[str, np.ndarray]:
    try:
        frame = pd.read_parquet(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except ImportError:
        raise UserError(f"{path}: reading Parquet needs the package pyarrow (pip install pyarrow)") from None
    except Exception as error:  # pyarrow raises kinds of its own
        raise UserError(f"{path}: not a Parquet file ({first_line(error)})") from None
    arrays: dict[str, np.ndarray] = {}
    if "label" in frame:
        column = frame.pop("label")
        if column.isna().any():
            raise UserError(f"{path}: row {int(column.isna().to_numpy().argmax()) + 1} has no label")
        if column.dtype == object and not all(isinstance(label, str) for label in column):
            raise UserError(f"{path}: column 'label' holds something else than numbers or text")
        arrays["labels"] = column.to_numpy(str if column.dtype == object else None)
    try:
        if "embedding" in frame:
            arrays["embeddings"] = np.stack([np.asarray(row, dtype=np.float64) for row in frame["embedding"]])
        elif len(numbers := frame.select_dtypes("number").columns):
            arrays["embeddings"] = frame[numbers].to_numpy(dtype=np.float64)
    except (ValueError, TypeError) as error:
        reason = f"column 'embedding' does not hold lists of numbers of one length ({first_line(error)})"
        raise UserError(f"{path}: {reason}") from None
    return arrays
