"""``datasets/splits.csv``: every split of the data sets whose manifests are here, made again from names and classes alone."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.splits import PROTOCOLS, manifest

FOLDER = Path(__file__).parents[2] / "datasets"


def rows_of(name: str) -> list[dict[str, str]]:
    with (FOLDER / name).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def committed(name: str) -> ImageTable:
    """The data set that ``datasets/<name>.csv`` describes; its training classes come first, in the order of the file or by name."""
    rows = rows_of(f"{name}.csv")
    classes = list(dict.fromkeys(row["class"] for row in rows))
    if name == "flowers":
        classes.sort()
    labels = np.array([classes.index(row["class"]) for row in rows])
    trained = len({row["class"] for row in rows if row["split"] == "train"})
    closed = FOLDER / f"{name}.closed_set.csv"
    sides = np.array([row["split"] for row in rows_of(closed.name)]) if closed.exists() else None
    return ImageTable(Path(name), tuple(row["path"] for row in rows), labels, tuple(classes), trained, sides)


@pytest.mark.parametrize("name", sorted({row["dataset"] for row in rows_of("splits.csv")}))
def test_splits_are_the_committed_ones(name: str) -> None:
    table = committed(name)
    for row in (row for row in rows_of("splits.csv") if row["dataset"] == name):
        fold, folds = map(int, row["fold"].split(" of ")) if row["fold"] else (0, 4)
        frame = PROTOCOLS[row["split"]](table, fold, folds)
        assert hashlib.sha256(manifest(frame).encode()).hexdigest() == row["sha256"]
        sides = Counter(frame["split"])
        assert [sides[side] for side in ("train", "test", "")] == [
            int(row[side]) for side in ("train", "test", "left_out")
        ]
