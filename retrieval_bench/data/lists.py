"""Reading the lists that come with data sets: columns of a text file, variables of a MATLAB file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from retrieval_bench.errors import UserError, first_line


def read_columns(path: Path, columns: int, skip: int = 0) -> list[list[str]]:
    """The lines of a text file, each cut at white space into `columns` pieces, after `skip` lines of heading; empty lines are passed over.

    Raises:
        UserError: the file is missing, or a line has another number of pieces.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: file is missing; the data set is incomplete") from None
    rows = [
        (number, line.split(maxsplit=columns - 1))
        for number, line in enumerate(lines, start=1)
        if number > skip and line.strip()
    ]
    for number, row in rows:
        if len(row) != columns:
            raise UserError(
                f"{path}: not the official file (line {number} has {len(row)} columns, not {columns}); fetch the data set again"
            )
    return [[piece.strip() for piece in row] for _, row in rows]


def read_matlab(path: Path, *names: str) -> list[Any]:
    """The named variables of a MATLAB file; structs become arrays of objects with the fields as attributes.

    Raises:
        UserError: no MATLAB file, or a variable is missing.
    """
    from scipy.io import loadmat

    if not path.is_file():
        raise UserError(f"{path}: file is missing; the data set is incomplete")
    try:
        content = loadmat(path, squeeze_me=True, struct_as_record=False, mat_dtype=False)
        return [content[name] for name in names]
    except KeyError as error:
        raise UserError(f"{path}: not the official file (it has no variable {error}); fetch it again") from None
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise UserError(f"{path}: not a MATLAB file ({first_line(error)}); fetch it again") from None


def read_fields(path: Path, structs: Any, *names: str) -> list[tuple[Any, ...]]:
    """The named fields of each MATLAB struct; raises :class:`UserError` naming `path` and the field that is missing."""
    try:
        return [tuple(getattr(struct, name) for name in names) for struct in np.atleast_1d(structs)]
    except AttributeError as error:
        raise UserError(f"{path}: not the right file ({first_line(error)}); fetch it again") from None


def whole_numbers(path: Path, values: list[str]) -> list[int]:
    """The texts as numbers; raises :class:`UserError` naming `path` for anything else."""
    try:
        return [int(value) for value in values]
    except ValueError as error:
        raise UserError(f"{path}: not the official file ({error}); fetch the data set again") from None
