"""Your own images, named by a CSV or Parquet table.

Columns: ``path`` (relative to the table's folder), ``label``, and optionally ``split`` (``train``, ``test`` or empty),
``query`` and ``gallery`` (0 or 1, for test rows: searched with, searched in; both without these columns). See
``datasets/own.md``.
"""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from retrieval_bench.data.dataset import Dataset
from retrieval_bench.data.table import SPLIT_NAMES, ImageTable, named_table
from retrieval_bench.errors import UserError, first_line

COLUMNS = ("path", "label", "split", "query", "gallery")
YES, NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no", "")


def open_image_list(root: Path | None) -> ImageTable:
    """Opens the images that the table at `root` names; a value that is not understood is refused with its row."""
    if root is None or not root.is_file():
        raise UserError("data set 'table' needs --data-root FILE, a CSV or Parquet file with columns path,label")
    frame = _read(root)
    for name in ("path", "label"):
        _refuse(root, frame[name] == "", f"has no {name}")
    paths = frame["path"].str.replace("\\", "/").map(posixpath.normpath)
    files = paths.map(lambda path: posixpath.normpath(posixpath.join(root.parent.resolve().as_posix(), path)))
    _refuse(root, files.duplicated(), "names an image a second time ({})", paths)
    if frame["label"].nunique() < 2:
        raise UserError(f"{root}: all rows have one label; retrieval needs several classes")
    split = _split(root, frame)
    return named_table(root.parent, paths.tolist(), frame["label"].tolist(), split)


def _read(path: Path) -> Any:
    """The table with text in all cells; rows count from 1."""
    parquet = path.suffix.lower() == ".parquet"
    try:
        if parquet:
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True, encoding="utf-8-sig")
    except ImportError:
        raise UserError(f"{path}: reading Parquet needs pyarrow (pip install pyarrow); CSV needs nothing") from None
    except (ValueError, OSError) as error:  # pandas and pyarrow raise kinds of both
        raise UserError(f"{path}: not a CSV or Parquet table ({first_line(error)})") from None
    known = {name: str(name).strip().lower() for name in frame.columns}
    frame = frame.rename(columns={name: plain for name, plain in known.items() if plain.removesuffix(".1") in COLUMNS})
    if twice := [name for name in COLUMNS if list(frame.columns).count(name) > 1 or f"{name}.1" in frame]:
        raise UserError(f"{path}: column '{twice[0]}' is there twice")  # pandas names the second "label.1"
    for name in ("path", "label"):
        if name not in frame:
            raise UserError(f"{path}: column '{name}' is missing; its columns are {', '.join(map(str, frame.columns))}")
    if not parquet and not isinstance(frame.index, pd.RangeIndex):  # pandas took a row's first value as its name
        raise UserError(f"{path}: rows have more columns than the heading; put quotes around values that hold a comma")
    if frame["label"].dtype.kind == "f" and not np.mod(frame["label"].dropna().to_numpy(), 1).any():
        frame["label"] = frame["label"].astype("Int64")  # a column of whole numbers with gaps comes as 3.0
    frame = frame[[name for name in COLUMNS if name in frame]]
    frame = frame.astype("string").fillna("").apply(lambda column: column.str.strip()).astype(object)
    return frame.set_axis(range(1, len(frame) + 1))


def _split(path: Path, frame: Any) -> list[str] | None:
    """One of :data:`SPLIT_NAMES` per row, or None if the table says nothing of a split."""
    flags = [name for name in ("query", "gallery") if name in frame]
    if "split" not in frame:
        if flags:
            raise UserError(f"{path}: column '{flags[0]}' needs a column 'split' that tells train from test")
        return None
    split = frame["split"].str.lower()
    _refuse(path, ~split.isin(SPLIT_NAMES), "has split '{}': use train, test, or leave it empty", frame["split"])
    roles = {}
    for name in ("query", "gallery"):
        values = frame[name].str.lower() if name in flags else pd.Series("1", frame.index)
        _refuse(path, ~values.isin(YES + NO), f"has {name} '{{}}': use 0 or 1", frame.get(name))
        roles[name] = values.isin(YES)
    query, gallery = roles["query"], roles["gallery"]
    role = np.select([query & gallery, query, gallery], ["test", "query", "gallery"], "")
    return np.where(split == "test", role, split).tolist()


def _refuse(path: Path, wrong: Any, problem: str, values: Any = None) -> None:
    """Raises :class:`UserError` about the first row that is `wrong`; ``{}`` in `problem` stands for the row's value."""
    if wrong.any():
        row = wrong.idxmax()
        raise UserError(f"{path}: row {row} {problem if values is None else problem.format(values[row])}")


TABLE = Dataset(
    about="your own images, named by a CSV or Parquet file with path,label[,split,query,gallery] (--data-root FILE)",
    open=open_image_list,
)
