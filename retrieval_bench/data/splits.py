"""Split protocols as pure functions from labels to row numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrieval_bench.data.images import ImageTable
from retrieval_bench.errors import UserError
from retrieval_bench.seeding import derive


@dataclass(frozen=True)
class Split:
    """Row numbers of an :class:`~retrieval_bench.data.images.ImageTable`.

    Attributes:
        train: int64 (N,), rows that are trained on.
        test: int64 (M,), rows that are embedded; each is a query against all the others.
        train_classes: labels that occur in `train`, ascending; their position is the class number that the loss sees.
    """

    train: np.ndarray
    test: np.ndarray
    train_classes: np.ndarray

    def train_labels(self, labels: np.ndarray) -> np.ndarray:
        """int64 (N,): class numbers 0..C-1 of the training rows, given the table's labels."""
        return np.searchsorted(self.train_classes, labels[self.train])


def zero_shot(labels: np.ndarray, train_classes: int) -> Split:
    """The standard protocol of retrieval papers: train on the first `train_classes` classes, test on all the others.

    Args:
        labels: int64 (N,), in 0..C-1.
        train_classes: how many classes are trained on; half of them in CUB-200-2011 and most other sets.
    """
    return _by_class(labels, np.arange(train_classes))


def zero_shot_val(labels: np.ndarray, train_classes: int, seed: int = 0, share: float = 0.2) -> Split:
    """A class-disjoint validation split inside the training classes of :func:`zero_shot`; the test classes are not touched.

    Args:
        labels: int64 (N,), in 0..C-1.
        train_classes: as in :func:`zero_shot`.
        seed: draws which classes validate; fixed for all runs of a comparison.
        share: share of the training classes that validate (at least one class).
    """
    shuffled = np.random.Generator(np.random.PCG64(derive(seed, "validation classes"))).permutation(train_classes)
    held_out = max(1, round(share * train_classes))
    keep = np.sort(shuffled[held_out:])
    inside = np.flatnonzero(labels < train_classes)
    split = _by_class(labels[inside], keep)
    return Split(inside[split.train], inside[split.test], split.train_classes)


def make_split(protocol: str, labels: np.ndarray, train_classes: int) -> Split:
    """The split called `protocol` (``zero_shot`` or ``zero_shot_val``); raises :class:`UserError` if a side would be empty."""
    split = {"zero_shot": zero_shot, "zero_shot_val": zero_shot_val}[protocol](labels, train_classes)
    if not len(split.train) or not len(split.test):
        raise UserError(f"split {protocol} needs images on both sides: {len(split.train)} to train on, {len(split.test)} to test on")
    return split


def manifest(table: ImageTable, split: Split) -> str:
    """The split as CSV text, ``path,class,split`` with a row per image: what is committed under ``datasets/``."""
    sides = np.full(len(table), "", dtype=object)
    sides[split.train], sides[split.test] = "train", "test"
    rows = zip(table.paths, table.labels, sides, strict=True)
    return "path,class,split\n" + "".join(f"{path},{table.class_names[label]},{side}\n" for path, label, side in rows)


def _by_class(labels: np.ndarray, classes: np.ndarray) -> Split:
    training = np.isin(labels, classes)
    return Split(np.flatnonzero(training), np.flatnonzero(~training), np.unique(labels[training]))
