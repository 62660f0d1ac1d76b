"""A data set of one's own: a CSV or Parquet table that names the images.

Columns: ``path`` (relative to the table's folder), ``label``, and as many of these as are wanted: ``split`` (``train``, ``test`` or empty
for left out), ``query`` and ``gallery`` (0 or 1, for test rows: searched with, searched in; both where the columns are missing).
"""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_bench.data.dataset import Dataset
from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.sets.folder import tabulate
from retrieval_bench.errors import UserError, first_line

COLUMNS = ("path", "label", "split", "query", "gallery")
FLAGS = {
    "1": True,
    "1.0": True,
    "true": True,
    "yes": True,
    "0": False,
    "0.0": False,
    "false": False,
    "no": False,
    "": False,
}


def open_listed(root: Path | None) -> ImageTable:
    """Opens the images that the table at `root` names.

    Raises:
        UserError: no such table, a column or value that is not understood (with its row), or an image named twice.
    """
    if root is None or not root.is_file():
        raise UserError(
            "data set 'table' is your own images: give --data-root FILE, a CSV or Parquet file with columns path,label"
        )
    frame = _read(root)
    for name in COLUMNS[:2]:
        empty = frame[name] == ""
        if empty.any():
            raise UserError(f"{root}: row {_row(empty)} has no {name}")
    paths = frame["path"].str.replace("\\", "/").map(posixpath.normpath)
    if paths.duplicated().any():
        raise UserError(
            f"{root}: row {_row(paths.duplicated())} names an image a second time ({paths[paths.duplicated()].iloc[0]})"
        )
    if frame["label"].nunique() < 2:
        raise UserError(f"{root}: all rows have one label; retrieval needs several classes")
    sides = _sides(root, frame)
    return tabulate(root.parent, list(zip(paths, frame["label"], sides or [None] * len(frame), strict=True)))


def _read(path: Path) -> Any:
    """The table with text in all cells; rows count from 1."""
    import pandas as pd

    try:
        if path.suffix.lower() == ".parquet":
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True, encoding="utf-8-sig")
    except ImportError:
        raise UserError(
            f"{path}: reading Parquet needs the package pyarrow (pip install pyarrow); CSV needs nothing"
        ) from None
    except (ValueError, OSError) as error:  # pandas and pyarrow raise kinds of both
        raise UserError(f"{path}: not a CSV or Parquet table ({first_line(error)})") from None
    missing = [name for name in COLUMNS[:2] if name not in frame]
    if missing:
        raise UserError(
            f"{path}: column '{missing[0]}' is missing; its columns are {', '.join(map(str, frame.columns))}"
        )
    if path.suffix.lower() != ".parquet" and not isinstance(
        frame.index, pd.RangeIndex
    ):  # pandas took a row's first piece as its name
        raise UserError(f"{path}: rows have more columns than the heading; put quotes around values that hold a comma")
    if frame["label"].dtype.kind == "f" and not np.mod(frame["label"].dropna().to_numpy(), 1).any():
        frame["label"] = frame["label"].astype("Int64")  # a column of whole numbers with gaps comes as 3.0
    frame = frame[[name for name in COLUMNS if name in frame]]
    frame = frame.astype("string").fillna("").apply(lambda column: column.str.strip()).astype(object)
    frame.index = range(1, len(frame) + 1)
    return frame


def _row(where: Any) -> int:
    return int(where.idxmax())


def _sides(path: Path, frame: Any) -> list[str] | None:
    """One of :data:`retrieval_bench.data.images.SIDES` per row, or None if the table says nothing of sides."""
    flags = [name for name in ("query", "gallery") if name in frame]
    if not flags and "split" not in frame:
        return None
    split = frame["split"].str.lower() if "split" in frame else None
    if split is None:
        raise UserError(
            f"{path}: column '{flags[0]}' needs a column 'split' beside it that says which rows are train and which test"
        )
    strange = ~split.isin(("train", "test", "query", "gallery", ""))
    if strange.any():
        raise UserError(
            f"{path}: row {_row(strange)} has split '{frame['split'][_row(strange)]}': use train, test, or leave it empty"
        )
    roles = {name: _flags(path, frame[name]) if name in flags else [True] * len(frame) for name in ("query", "gallery")}
    return [
        _side(side, query, gallery)
        for side, query, gallery in zip(split, roles["query"], roles["gallery"], strict=True)
    ]


def _flags(path: Path, column: Any) -> list[bool]:
    values = column.str.lower()
    strange = ~values.isin(list(FLAGS))
    if strange.any():
        raise UserError(f"{path}: row {_row(strange)} has {column.name} '{column[_row(strange)]}': use 0 or 1")
    return [FLAGS[value] for value in values]


def _side(split: str, query: bool, gallery: bool) -> str:
    if split != "test" or (query and gallery):
        return split
    return "query" if query else "gallery" if gallery else ""


TABLE = Dataset(
    about="your own images, named by a CSV or Parquet file with path,label[,split,query,gallery] (--data-root FILE)",
    open=open_listed,
)
