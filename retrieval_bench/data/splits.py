"""Split protocols: pure functions from a table of images to a frame with a row per image, and the row numbers that follow from it.

A frame has the columns ``path``, ``class``, ``label`` and ``split``; the last is one of :data:`retrieval_bench.data.images.SIDES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from retrieval_bench.data.images import SIDES, ImageTable
from retrieval_bench.errors import UserError
from retrieval_bench.seeding import derive

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Split:
    """Row numbers of an :class:`~retrieval_bench.data.images.ImageTable`, each ascending.

    Attributes:
        train: int64 (N,), rows that are trained on.
        query: int64 (Q,), rows that are searched with.
        gallery: int64 (G,), rows that are searched in; a query that is in the gallery is not its own neighbour.
        train_classes: labels that occur in `train`, ascending; their position is the class number that the loss sees.
    """

    train: np.ndarray
    query: np.ndarray
    gallery: np.ndarray
    train_classes: np.ndarray

    @property
    def test(self) -> np.ndarray:
        """int64 (M,): rows that are embedded for the test, queries and gallery together, ascending."""
        return np.union1d(self.query, self.gallery)

    def train_labels(self, labels: np.ndarray) -> np.ndarray:
        """int64 (N,): class numbers 0..C-1 of the training rows, given the table's labels."""
        return np.searchsorted(self.train_classes, labels[self.train])


def zero_shot(table: ImageTable) -> pd.DataFrame:
    """The standard protocol of retrieval papers: train on the first classes, test on all the others, which training never saw.

    Every test image is searched among all the others, unless the data set's own lists make it a query or a gallery image (In-Shop).
    """
    inside = table.labels < table.train_classes
    own = _own_sides(table)
    return _frame(table, np.where(own == "", "", np.where(inside, "train", np.where(own == "train", "test", own))))


def zero_shot_val(table: ImageTable, seed: int = 0, share: float = 0.2) -> pd.DataFrame:
    """A class-disjoint validation split inside the training classes of :func:`zero_shot`; the test classes are left out.

    Args:
        table: the images.
        seed: draws which classes validate; fixed for all runs of a comparison.
        share: share of the training classes that validate (at least one class).
    """
    shuffled = _shuffled_training_classes(table, seed)
    return _validate_on(table, shuffled[: max(1, round(share * len(shuffled)))])


def kfold(table: ImageTable, fold: int = 0, folds: int = 4, seed: int = 0) -> pd.DataFrame:
    """Fold `fold` of `folds` class-disjoint ones inside the training classes of :func:`zero_shot`: it validates, the others train.

    The folds differ by one class at most and together hold every training class once. Four folds of the first half of the classes are
    the protocol of Musgrave et al., A Metric Learning Reality Check (ECCV 2020), there unshuffled.

    Args:
        table: the images.
        fold: 0..folds-1.
        folds: how many.
        seed: draws which classes are in which fold.
    """
    return _validate_on(table, _shuffled_training_classes(table, seed)[fold::folds])


def closed_set(table: ImageTable) -> pd.DataFrame:
    """The data set's official split into training and test images, in which every class is on both sides.

    Raises:
        UserError: the data set has no such split, or a test class has no training image.
    """
    own = _own_sides(table)
    if table.sides is None:
        raise UserError(
            f"{table.root}: this data set has no official training and test images, which --split closed_set needs"
        )
    unseen = np.setdiff1d(table.labels[~np.isin(own, ("train", ""))], table.labels[own == "train"])
    if len(unseen):
        name = table.class_names[unseen[0]]
        raise UserError(
            f"{table.root}: class '{name}' is tested but not trained on: use --split zero_shot in place of closed_set"
        )
    return _frame(table, own)


PROTOCOLS: dict[str, Callable[[ImageTable, int, int], pd.DataFrame]] = {
    "zero_shot": lambda table, fold, folds: zero_shot(table),
    "zero_shot_val": lambda table, fold, folds: zero_shot_val(table),
    "kfold": kfold,
    "closed_set": lambda table, fold, folds: closed_set(table),
}
INSIDE_TRAINING = ("zero_shot_val", "kfold")
"""Protocols that split the training classes of ``zero_shot``."""


def rows_of(frame: pd.DataFrame) -> Split:
    """The row numbers of each side of a split."""
    sides, labels = frame["split"].to_numpy(), frame["label"].to_numpy()
    train = np.flatnonzero(sides == "train")
    query, gallery = (np.flatnonzero(np.isin(sides, ("test", role))) for role in ("query", "gallery"))
    return Split(train, query, gallery, np.unique(labels[train]))


def make_split(protocol: str, table: ImageTable, fold: int = 0, folds: int = 4, classes: int = 0) -> Split:
    """The split called `protocol` (a key of :data:`PROTOCOLS`).

    Args:
        protocol: its name.
        table: the images.
        fold: which fold validates, for ``kfold``.
        folds: how many there are.
        classes: use only the first so many training classes and the first so many tested ones; validation classes are taken from
            those training classes. 0 uses all.

    Raises:
        UserError: a side would be empty, or has fewer than `classes` classes.
    """
    inside = protocol in INSIDE_TRAINING
    if classes and inside:
        if classes > table.train_classes:
            raise UserError(f"--classes {classes}: {table.root} has {table.train_classes} training classes")
        table = replace(table, zero_shot_classes=classes)
    split = rows_of(PROTOCOLS[protocol](table, fold, folds))
    if not len(split.train) or not len(split.query) or not len(split.gallery):
        found = f"{len(split.train)} to train on, {len(split.query)} queries, {len(split.gallery)} in the gallery"
        raise UserError(f"{table.root}: split {protocol} needs images on all sides: {found}")
    return first_classes(split, table.labels, classes) if classes and not inside else split


def first_classes(split: Split, labels: np.ndarray, count: int) -> Split:
    """The split with only the first `count` training classes and the first `count` tested classes, of a closed set the same ones.

    Raises:
        UserError: a side has fewer classes.
    """
    tested = np.unique(labels[split.test])
    fewest = min(len(split.train_classes), len(tested))
    if count > fewest:
        raise UserError(
            f"--classes {count}: the split has {len(split.train_classes)} training classes and {len(tested)} tested ones"
        )
    closed = np.isin(tested, split.train_classes).all()
    kept = tested[:count] if closed else split.train_classes[:count]
    query, gallery = (rows[np.isin(labels[rows], tested[:count])] for rows in (split.query, split.gallery))
    if not len(query) or not len(gallery):
        raise UserError(
            f"--classes {count}: leaves {len(query)} queries and {len(gallery)} gallery images; use more classes"
        )
    return Split(split.train[np.isin(labels[split.train], kept)], query, gallery, kept)


def check_fold(protocol: str, fold: int, folds: int) -> None:
    """Raises :class:`UserError` unless `fold` is one of `folds`, and both are as by default where the protocol has no folds."""
    if folds < 2:
        raise UserError(f"--folds {folds}: must be at least 2")
    if not 0 <= fold < folds:
        raise UserError(f"--fold {fold}: must be from 0 to {folds - 1} (--folds {folds})")
    if protocol != "kfold" and (fold, folds) != (0, 4):
        raise UserError(f"--fold and --folds belong to --split kfold; --split is {protocol}")


def manifest(frame: pd.DataFrame) -> str:
    """The split as CSV text, ``path,class,split`` with a row per image: what is committed under ``datasets/``."""
    return frame[["path", "class", "split"]].to_csv(index=False, lineterminator="\n")


def _own_sides(table: ImageTable) -> np.ndarray:
    """What the data set's lists say of each image; without lists all are tested images."""
    sides = np.full(len(table), "test") if table.sides is None else table.sides.astype("U7")
    assert np.isin(sides, SIDES).all()
    return sides


def _shuffled_training_classes(table: ImageTable, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(derive(seed, "validation classes"))).permutation(table.train_classes)


def _validate_on(table: ImageTable, held_out: np.ndarray) -> pd.DataFrame:
    """The training classes of :func:`zero_shot`, of which `held_out` are tested, each image against all the others."""
    training = zero_shot(table)["split"].to_numpy() == "train"
    return _frame(table, np.where(training, np.where(np.isin(table.labels, held_out), "test", "train"), ""))


def _frame(table: ImageTable, sides: np.ndarray) -> pd.DataFrame:
    import pandas as pd

    names = np.array(table.class_names, dtype=object)[table.labels]
    return pd.DataFrame(
        {"path": list(table.paths), "class": names, "label": table.labels, "split": sides.astype(object)}
    )
