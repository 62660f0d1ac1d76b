"""Reading the lists that come with data sets: columns of a text file, variables of a MATLAB file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from retrieval_bench.errors import UserError, first_line


def read_columns(path: Path, *types: type, skip: int = 0) -> list[tuple[Any, ...]]:
    """The rows of a text file, split at white space into one value of each type; the last one may hold spaces.

    `skip` lines of heading are left out. Raises :class:`UserError` if the file is missing, or a line has another number
    of columns or text in place of a number.
    """
    _check_exists(path)
    rows = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines[skip:], start=skip + 1):
        values = line.split(maxsplit=len(types) - 1)
        if values:
            try:
                rows.append(tuple(kind(value.strip()) for kind, value in zip(types, values, strict=True)))
            except ValueError as error:
                reason = str(error) if len(values) == len(types) else f"{len(values)} columns, not {len(types)}"
                raise UserError(
                    f"{path}: not the official file (line {number}: {reason}); fetch the data set again"
                ) from None
    return rows


def read_matlab(path: Path, *names: str) -> list[np.ndarray]:
    """Variables of a MATLAB file, flat; ``name.field`` is a field of each struct in the variable.

    Raises :class:`UserError` if it is not a MATLAB file, or a variable or field is missing.
    """
    _check_exists(path)
    try:
        content = loadmat(path, squeeze_me=True, struct_as_record=False)
        arrays = []
        for name in names:
            variable, _, field = name.partition(".")
            values = np.atleast_1d(content[variable])
            arrays.append(np.array([getattr(value, field) for value in values]) if field else values)
        return arrays
    except (KeyError, AttributeError) as error:
        missing = error.args[0] if isinstance(error, KeyError) else error.name
        raise UserError(f"{path}: not the official file (it has no '{missing}'); fetch it again") from None
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise UserError(f"{path}: not a MATLAB file ({first_line(error)}); fetch it again") from None


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: file is missing; the data set is incomplete")
