"""Other data sets that a finished embedder is measured on: how they are named, and which of their images are used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from retrieval_bench.data.catalog import DATASETS, open_dataset
from retrieval_bench.data.splits import Split
from retrieval_bench.data.table import ImageTable
from retrieval_bench.errors import UserError, unknown
from retrieval_bench.seeding import derive


@dataclass(frozen=True)
class OtherSet:
    """The test classes of a data set (``zero_shot``), or `count` images of them (0: all), opened from `root`."""

    name: str
    root: Path | None = None
    count: int = 0

    @property
    def label(self) -> str:
        """What it is called in records and tables, without its folder: ``cub:1000``."""
        return f"{self.name}:{self.count}" if self.count else self.name

    def open(self) -> tuple[ImageTable, Split]:
        """Its images, and the split in which only the chosen test images are queries and gallery.

        Raises:
            UserError: what :func:`~retrieval_bench.data.catalog.open_dataset` finds wrong, behind the name of the flag.
        """
        try:
            table, split = open_dataset(self.name, self.root)
            if not self.count:
                return table, split
            if not np.array_equal(split.query, split.gallery):
                raise UserError("has queries and a gallery of its own, so it is measured whole; leave the number out")
            if not 4 <= self.count <= len(split.test):
                raise UserError(f"give a number of images from 4 to {len(split.test):,}, all of its test classes")
            rows = choose_images(split.test, table.labels[split.test], self.count)
            return table, replace(split, query=rows, gallery=rows)
        except UserError as error:
            text = re.sub("--data-root( FOLDER)?", f"{self.name}:FOLDER", str(error))
            raise UserError(f"--also-test {self.label}: {text}") from None


def parse_other_sets(words: Sequence[str]) -> list[OtherSet]:
    """The sets that ``NAME``, ``NAME:COUNT``, ``NAME:FOLDER`` and ``NAME:FOLDER:COUNT`` name, by label; nothing is
    opened. A folder whose name is a number is written ``./NUMBER``.

    Raises:
        UserError: a name that there is not, or one set given twice.
    """
    sets = []
    for word in words:
        name, _, rest = word.partition(":")
        if name not in DATASETS:
            raise unknown("data set", name, DATASETS)
        folder, _, count = rest.rpartition(":") if not rest.isdecimal() else ("", "", rest)
        if not count.isdecimal():
            folder, count = rest, "0"
        sets.append(OtherSet(name, Path(folder).expanduser() if folder else None, int(count)))
        if [other.name for other in sets].count(name) > 1:
            raise UserError(f"--also-test {' '.join(words)}: names {name} twice")
    return sorted(sets, key=lambda other: other.label)


def choose_images(rows: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the rows, int64 ascending, drawn once for all runs (seed 0): as many of each class as of any
    other, as far as it has so many, but at least two, for which classes are left out where they are too many.

    Args:
        rows: int64 (N,).
        labels: int64 (N,), their classes.
        count: 4 to N.
    """
    random = np.random.Generator(np.random.PCG64(derive(0, "images of other sets")))
    names, sizes = np.unique(labels, return_counts=True)
    classes = random.permutation(names[sizes > 1])[: count // 2]
    drawn = {label: random.permutation(rows[labels == label]) for label in classes}
    places = [(turn, number) for number, label in enumerate(classes) for turn in range(len(drawn[label]))]
    places.sort(key=lambda place: (max(place[0], 1), place[1]))  # a pair of each class, then one more of each...
    return np.sort(np.array([drawn[classes[number]][turn] for turn, number in places[:count]], dtype=np.int64))


def without_folders(words: Iterable[str]) -> tuple[str, ...]:
    """The labels of the sets, in order: what is measured, wherever it lies."""
    return tuple(other.label for other in parse_other_sets(list(words)))
