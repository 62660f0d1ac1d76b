"""Numbers that papers report and nobody measured here: ``reported.csv``, a line per row of a source and data set.

Its metrics are in percent, as printed. ``table`` is the experiment that makes the same rows, or ``headline`` for the
results that a field cites. Settings differ from row to row and from what is measured here.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from retrieval_bench.columns import metric_names


@cache
def _read() -> Any:
    """The file with its metrics as fractions."""
    rows: Any = pd.read_csv(Path(__file__).with_name("reported.csv"), keep_default_na=False, na_values=[""])
    metrics = metric_names(rows)
    rows[metrics] = (rows[metrics].astype("float64") / 100).round(6)
    return rows


def reported_values(table: str, row: str, dataset: str) -> dict[str, float]:
    """The metrics (as fractions) of an experiment's row in its source; empty for a data set or row that it lacks."""
    rows = _read()
    rows = rows[(rows["table"] == table) & (rows["row"] == row) & (rows["dataset"] == dataset)]
    return rows[metric_names(rows)].iloc[0].dropna().to_dict() if len(rows) else {}


def reported_source(table: str) -> str:
    """Where the values of an experiment come from."""
    rows = _read()
    return str(rows.loc[rows["table"] == table, "source"].iloc[0])


def reported_rows(datasets: Iterable[str]) -> pd.DataFrame:
    """All rows about these data sets with the leaderboard's columns: ``strategy`` is the source's row, ``dim`` is empty
    where it is unknown, metrics are fractions, ``reported`` is the source."""
    rows = _read()
    rows = rows[rows["dataset"].isin(list(datasets))].reset_index(drop=True)
    order = ["dataset", "split", "backbone", "dim", "loss", "row", *metric_names(rows), "source"]
    return rows[order].rename(columns={"row": "strategy", "source": "reported"})
