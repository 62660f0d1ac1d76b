"""Embeddings and labels from files, and results to files."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from retrieval_bench.errors import UserError, first_line, unknown
from retrieval_bench.evaluation.inputs import as_labels, split_labels
from retrieval_bench.files import atomic_path, check_writable

ARRAYS = ("embeddings", "labels", "query_embeddings", "query_labels", "same_item")
TABLES = {".parquet": "read_parquet", ".feather": "read_feather", ".csv": "read_csv"}
"""Readers of pandas."""
FORMATS = ".npz, .npy, .parquet, .feather or .csv"
PICKLED = (".pkl", ".pickle", ".pt", ".pth", ".joblib")
MISSING = {
    ".npy": "give them with --labels FILE",
    **dict.fromkeys(TABLES, "columns label, and embedding or a series such as e0, e1, ..."),
}


def read_embeddings(
    path: Path, labels: Path | None = None, columns: Mapping[str, str] | None = None, labelled: bool = True
) -> dict[str, Any]:
    """``embeddings`` (N, D) and ``labels`` (N,), and ``query_embeddings``, ``query_labels`` and ``same_item`` where a
    file has them.

    Args:
        path: ``.npz`` with arrays of these names; ``.npy`` with (N, D) numbers, which is memory-mapped, not read; or a
            table (``.parquet``, ``.feather``, ``.csv``) with a column ``label``, and a column ``embedding`` of lists or
            a numbered column per dimension (e0, e1, ...).
        labels: ``.npy``, or text with a label per line; needed for ``.npy`` embeddings, instead of the others' own.
        columns: other columns of a table, or arrays of an ``.npz`` file (also ``query_<name>``), by what they are read
            as: ``cameras``, ``ignore``, or ``labels``, which may then be several in a row: lists, a matrix, or ``a|b``.
        labelled: whether labels must be there.

    Raises:
        UserError: a file is missing, damaged, pickled, or lacks an array or column.
    """
    suffix, columns = path.suffix.lower(), columns or {}
    arrays: dict[str, Any] = _read_table(path, columns) if suffix in TABLES else _read_numpy(path, columns)
    if labels is not None:
        arrays["labels"] = read_labels(labels)
    for name in ("embeddings", *(("labels",) if labelled else ())):
        if name not in arrays:
            hint = MISSING.get(suffix, "save with np.savez(path, embeddings=..., labels=...)")
            raise UserError(f"{path}: {name} are missing ({hint})")
    return arrays


def read_labels(path: Path) -> np.ndarray:
    """(N,) labels from ``.npy``, or from text with one per line, without the spaces around it."""
    if path.suffix.lower() == ".npy" and "embeddings" in (arrays := _read_numpy(path, {})):
        return arrays["embeddings"]
    try:
        lines = np.strings.strip(path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path}: not a text file with a label per line ({first_line(error)})") from None
    if re.search(r"(^|[,;\t\"])labels?($|[,;\t\"])", lines[0], re.IGNORECASE):
        raise UserError(
            f"{path}: its first line is a heading ({lines[0][:60]}); give a label per line and nothing else"
        )
    return lines


def read_numbers(path: Path) -> np.ndarray:
    """int (N,) from ``.npy``, or from text with a whole number per line."""
    values = read_labels(path)
    try:
        return values.astype(np.int64) if values.dtype.kind == "U" else values
    except ValueError as error:
        raise UserError(f"{path}: not a whole number per line ({first_line(error)})") from None


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


def _read_numpy(path: Path, columns: Mapping[str, str]) -> dict[str, Any]:
    """The arrays of an ``.npz`` file, or the one of an ``.npy`` file as ``embeddings``."""
    safe = f"save plain arrays as {FORMATS}, text labels with dtype=str"
    if path.suffix.lower() in PICKLED and path.exists():
        raise UserError(f"{path}: files of this kind can run code when they are loaded, and are not read; {safe}")
    try:
        loaded: Any = np.load(path, allow_pickle=False, mmap_mode="r" if path.suffix.lower() == ".npy" else None)
        if isinstance(loaded, np.ndarray):
            _check_columns(path, columns, ())
            return {"embeddings": loaded}
        with loaded as arrays:
            _check_columns(path, columns, arrays.files)
            others = ("labels", "query_labels") if "labels" in columns else ()
            found = {name: arrays[name] for name in ARRAYS if name in arrays and name not in others}
            for side in ("", "query_"):
                there = {f"{side}{name}": f"{side}{key}" for name, key in columns.items() if f"{side}{key}" in arrays}
                found |= {name: arrays[key] for name, key in there.items()}
            for name in found.keys() & others:
                found[name] = split_labels(found[name])
            return found
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # a damaged file makes NumPy and zipfile raise a dozen types
        if "allow_pickle" in str(error) and path.stat().st_size:
            raise UserError(f"{path}: not a file of plain arrays (objects, or another format); {safe}") from None
        raise UserError(f"{path}: not an {FORMATS} file of plain arrays ({first_line(error)})") from None


def _check_columns(path: Path, columns: Mapping[str, str], there: Iterable[str]) -> None:
    """Refuses columns that a file lacks; numbered ones are not listed."""
    for column in columns.values():
        if column not in there:
            plain = [name for name in there if not name[-1:].isdigit()]
            raise UserError(f"{path}: {unknown('column', column, plain)}")


def read_frame(path: Path, text: Iterable[str] = ()) -> pd.DataFrame:
    """A table (``.parquet``, ``.feather``, ``.csv``), with the `text` columns of a CSV file as they are written.

    Raises:
        UserError: a file is missing or damaged, or has a column twice.
    """
    suffix = path.suffix.lower()
    options = {"dtype": dict.fromkeys(text, str), "keep_default_na": False, "na_values": [""], "skipinitialspace": True}
    try:
        frame: pd.DataFrame = getattr(pd, TABLES[suffix])(path, **(options if suffix == ".csv" else {}))
        shifted = suffix == ".csv" and not isinstance(frame.index, pd.RangeIndex)
        frame = frame.reset_index(drop=frame.index.names == [None])  # a column that is the index is still a column
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except ImportError:
        raise UserError(f"{path}: reading {suffix} files needs the package pyarrow (pip install pyarrow)") from None
    except Exception as error:  # pyarrow raises kinds of its own
        name = suffix[1:].upper() if suffix == ".csv" else suffix[1:].capitalize()
        raise UserError(f"{path}: not a {name} file ({first_line(error)})") from None
    frame.columns = [str(name).strip() for name in frame.columns]
    if suffix == ".csv" and (mark := re.search("[;\t]", frame.columns[-1])):
        raise UserError(f"{path}: its columns are separated by {mark[0]!r}; write it with commas")
    if shifted:  # pandas took a row's first value as its name
        raise UserError(f"{path}: rows have more columns than the heading; put quotes around values that hold a comma")
    names = set(frame.columns)  # pandas names a CSV file's second column e1 "e1.1"
    twice = [name[:-2] for name in names if suffix == ".csv" and name[-2:] == ".1" and name[:-2] in names]
    if twice := sorted({*twice, *frame.columns[frame.columns.duplicated()]}):
        raise UserError(f"{path}: column '{twice[0]}' is there twice")
    return frame


def _read_table(path: Path, columns: Mapping[str, str]) -> dict[str, Any]:
    named = columns.get("labels", "label")
    frame = read_frame(path, ["label", named])
    _check_columns(path, columns, frame.columns)
    arrays: dict[str, Any] = {name: frame[column].to_numpy() for name, column in columns.items() if name != "labels"}
    if named in frame:
        column = frame.pop(named)
        if column.isna().any():
            raise UserError(f"{path}: row {int(column.isna().to_numpy().argmax()) + 1} has no label")
        if "labels" not in columns or not isinstance(next(iter(column), None), list | np.ndarray):
            labels = as_labels(column, f"{path}: column '{named}'")
            labels = _plain_labels(labels, path.suffix.lower() == ".csv")
            arrays["labels"] = split_labels(labels) if "labels" in columns else labels
        else:
            arrays["labels"] = column.tolist()
    frame = frame.drop(columns=[*set(columns.values()) & {*frame.columns}])
    if "embedding" not in frame:
        if names := _series(frame, path):
            arrays["embeddings"] = frame[names].to_numpy(dtype=np.float64, na_value=np.nan)
        return arrays
    try:
        arrays["embeddings"] = np.stack([np.asarray(row, dtype=np.float64) for row in frame["embedding"]])
    except (ValueError, TypeError) as error:
        reason = f"column 'embedding' does not hold lists of numbers of one length ({first_line(error)})"
        raise UserError(f"{path}: {reason}") from None
    return arrays


def _plain_labels(labels: np.ndarray, written: bool) -> np.ndarray:
    """Text without the spaces around it; numbers where all labels are `written` in text and as whole numbers."""
    if labels.dtype.kind != "U":
        return labels
    labels = np.strings.strip(labels)
    numbers = [re.fullmatch(r"(-?(?:0|[1-9][0-9]{0,17}))(?:\.0*)?", label) for label in labels.tolist()]
    return np.array([number[1] for number in numbers if number], dtype=np.int64) if written and all(numbers) else labels


def _series(frame: pd.DataFrame, path: Path) -> list[str]:
    """The columns of numbers named alike but for a number, 0 to D - 1 or 1 to D, in that order; none if no column is a
    number. Says on stderr how many there are and which columns are left out."""
    numeric = list(frame.select_dtypes("number").columns)
    series: dict[str, dict[int, str]] = {}
    for name in numeric:
        if match := re.fullmatch(r"(.*?)([0-9]+)", name):
            columns = series.setdefault(match[1], {})
            if int(match[2]) in columns:
                raise UserError(f"{path}: columns '{columns[int(match[2])]}' and '{name}' have one number; keep one")
            columns[int(match[2])] = name
    long = {prefix: columns for prefix, columns in series.items() if len(columns) > 1} or series
    if len(long) > 1:
        kinds = " and ".join(f"{columns[min(columns)]}... ({len(columns)})" for columns in long.values())
        raise UserError(f"{path}: several series of columns, {kinds}: keep one, or name its columns alike")
    if not long:
        if numeric:
            reason = f"no numbered series of columns such as e0, e1, ... (numbers are in {', '.join(numeric[:5])})"
            raise UserError(f"{path}: {reason}")
        return []
    ((prefix, columns),) = long.items()
    first = 0 if 0 in columns else 1
    text = [name for name in frame.columns.difference(numeric) if re.fullmatch(re.escape(prefix) + "[0-9]+", name)]
    lacking = (f"{prefix}{number}" for number in itertools.count(first) if number not in columns)
    if text or max(columns) - first >= len(columns):
        raise UserError(f"{path}: column '{[*text, next(lacking)][0]}' is missing or holds no numbers")
    names = [columns[number] for number in sorted(columns)]
    others = [name for name in frame.columns if name not in set(names)]
    left_out = f"; left out: {', '.join(others)}" if others else ""
    print(f"{path}: {len(names)} dimensions, {names[0]} to {names[-1]}{left_out}", file=sys.stderr)
    return names
