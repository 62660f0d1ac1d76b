"""Embeddings and labels from files, and results to files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from retrieval_bench.errors import UserError, first_line
from retrieval_bench.files import atomic_path, check_writable

TABLES = (".csv", ".parquet")


def read_embeddings(path: Path, labels: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) embeddings and (N,) labels.

    Args:
        path: ``.npz`` with arrays ``embeddings`` and ``labels``; ``.npy`` with (N, D) numbers, which is memory-mapped, not read; or
            ``.parquet`` with a column ``label`` and either a column ``embedding`` of lists or a column of numbers per dimension.
        labels: ``.npy``, or text with a label per line; needed for ``.npy`` embeddings, in place of the file's own for the others.

    Raises:
        UserError: a file is missing, damaged, holds pickled objects, or lacks an array or column.
    """
    arrays = _read(path)
    if labels is not None:
        arrays["labels"] = read_labels(labels)
    for name in ("embeddings", "labels"):
        if name not in arrays:
            ways = {
                ".npy": "give them with --labels FILE",
                ".npz": "save with np.savez(path, embeddings=..., labels=...)",
            }
            raise UserError(f"{path}: {name} are missing ({ways.get(path.suffix, 'columns label and embedding')})")
    return arrays["embeddings"], arrays["labels"]


def read_set(path: Path, labels: Path | None = None) -> dict[str, np.ndarray]:
    """:func:`read_embeddings` as arguments of ``evaluate``, with the ``query_`` arrays that an ``.npz`` file holds."""
    embeddings, own = read_embeddings(path, labels)
    queries = (
        {name: values for name, values in _read(path).items() if name.startswith("query_")}
        if path.suffix not in (".npy", ".parquet")
        else {}
    )
    return {"embeddings": embeddings, "labels": own, **queries}


def read_labels(path: Path) -> np.ndarray:
    """(N,) labels from ``.npy``, or from text with one per line."""
    if path.suffix == ".npy":
        return _load(path)
    try:
        return np.array(path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path}: not a text file with a label per line ({first_line(error)})") from None


def check_table_name(path: Path | None) -> None:
    """Raises :class:`UserError` now, rather than after the work, for a table that cannot be written."""
    if path is not None and path.suffix not in TABLES:
        raise UserError(f"{path}: a table is written as {' or '.join(TABLES)}")
    if path is not None:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a file")
        try:
            check_writable(path.parent)
        except UserError:
            raise UserError(f"{path}: cannot be written there; choose another place") from None


def write_frame(frame: Any, path: Path) -> None:
    """Writes a table as ``.csv`` or ``.parquet``, atomically; raises :class:`UserError` for Parquet without pyarrow."""
    with atomic_path(path) as temporary:
        if path.suffix == ".csv":
            frame.to_csv(temporary, index=False, lineterminator="\n")
            return
        try:
            frame.to_parquet(temporary, index=False)
        except ImportError:
            raise UserError(
                f"{path}: writing Parquet needs the package pyarrow (pip install pyarrow); .csv needs nothing"
            ) from None


def _read(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".npy":
        return {"embeddings": _load(path)}
    if path.suffix == ".parquet":
        return _read_parquet(path)
    loaded = _load(path)
    if isinstance(loaded, np.ndarray):
        return {"embeddings": loaded}
    try:
        with loaded as arrays:
            names = ("embeddings", "labels", "query_embeddings", "query_labels")
            return {name: arrays[name] for name in names if name in arrays}
    except Exception as error:  # a damaged member makes NumPy and zipfile raise a dozen types
        raise UserError(f"{path}: not an .npz file of plain arrays ({first_line(error)})") from None


def _load(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False, mmap_mode="r" if path.suffix == ".npy" else None)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # as above
        raise UserError(f"{path}: not an .npz, .npy or .parquet file of plain arrays ({first_line(error)})") from None


def _read_parquet(path: Path) -> dict[str, np.ndarray]:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except ImportError:
        raise UserError(f"{path}: reading Parquet needs the package pyarrow (pip install pyarrow)") from None
    except Exception as error:  # pyarrow raises kinds of its own
        raise UserError(f"{path}: not a Parquet file ({first_line(error)})") from None
    found: dict[str, np.ndarray] = {}
    if "label" in frame:
        found["labels"] = _parquet_labels(path, frame.pop("label"))
    try:
        if "embedding" in frame:
            found["embeddings"] = np.stack([np.asarray(row, dtype=np.float64) for row in frame["embedding"]])
        elif len(numbers := frame.select_dtypes("number").columns):
            found["embeddings"] = frame[numbers].to_numpy(dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: column 'embedding' does not hold lists of numbers of one length ({first_line(error)})"
        ) from None
    return found


def _parquet_labels(path: Path, column: Any) -> np.ndarray:
    if column.isna().any():
        raise UserError(f"{path}: row {int(column.isna().to_numpy().argmax()) + 1} has no label")
    labels = column.to_numpy()
    if labels.dtype != object:
        return labels
    if not all(isinstance(label, str) for label in labels):
        raise UserError(f"{path}: column 'label' holds something else than numbers or text")
    return labels.astype(str)
