"""Split protocols: pure functions from a table to one of :data:`SPLIT_NAMES` per image; and a split's row numbers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from retrieval_bench.data.table import ImageTable
from retrieval_bench.errors import UserError
from retrieval_bench.seeding import derive


@dataclass(frozen=True)
class Split:
    """Row numbers of an :class:`~retrieval_bench.data.table.ImageTable`, each ascending.

    Attributes:
        train: int64 (N,), rows that are trained on.
        query: int64 (Q,), rows that are searched with.
        gallery: int64 (G,), rows that are searched in; a query that is in the gallery is not its own neighbour.
        train_classes: labels that occur in `train`, ascending; their position is the class number that the loss sees.
        validation: int64 (V,), rows of training classes that are held out (``--validate``); empty without.
    """

    train: np.ndarray
    query: np.ndarray
    gallery: np.ndarray
    train_classes: np.ndarray
    validation: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @property
    def test(self) -> np.ndarray:
        """int64 (M,): rows that are embedded for the test, queries and gallery together, ascending."""
        return np.union1d(self.query, self.gallery)

    def train_labels(self, labels: np.ndarray) -> np.ndarray:
        """int64 (N,): class numbers 0..C-1 of the training rows, given the table's labels."""
        return np.searchsorted(self.train_classes, labels[self.train])


def zero_shot(table: ImageTable) -> np.ndarray:
    """The standard protocol of retrieval papers: train on the first classes, test on all the others.

    Every test image is searched among all the others, unless official lists make it a query or a gallery image
    (In-Shop).
    """
    official = _official_split(table)
    inside = np.where(table.labels < table.train_classes, "train", np.where(official == "train", "test", official))
    return np.where(official == "", "", inside)


def closed_set(table: ImageTable) -> np.ndarray:
    """The official split into training and test images of the same classes; a :class:`UserError` if there is none."""
    if table.official_split is None:
        raise UserError(f"{table.root}: has no official training and test images, which --split closed_set needs")
    names = _official_split(table)
    unseen = np.setdiff1d(table.labels[~np.isin(names, ("train", ""))], table.labels[names == "train"])
    if len(unseen):
        name = table.class_names[unseen[0]]
        raise UserError(f"{table.root}: class '{name}' is tested but not trained on; use --split zero_shot")
    return names


def split_names(protocol: str, table: ImageTable, fold: int = 0, folds: int = 4) -> np.ndarray:
    """(N,) of :data:`SPLIT_NAMES`, for each image of the table.

    Two protocols validate on training classes of :func:`zero_shot`, drawn once for all runs, each image searched among
    all the others: ``zero_shot_val`` on a fifth, ``kfold`` on fold `fold` of `folds` of nearly equal size. Four folds
    are the protocol of Musgrave et al., A Metric Learning Reality Check (ECCV 2020), there unshuffled.
    """
    if protocol in ("zero_shot", "closed_set"):
        return (zero_shot if protocol == "zero_shot" else closed_set)(table)
    shuffled = _shuffled_classes(table)
    held_out = shuffled[fold::folds] if protocol == "kfold" else shuffled[: max(1, round(0.2 * len(shuffled)))]
    return np.where(zero_shot(table) == "train", np.where(np.isin(table.labels, held_out), "test", "train"), "")


def make_split(
    protocol: str, table: ImageTable, fold: int = 0, folds: int = 4, classes: int = 0, train_per_class: int = 0
) -> Split:
    """The rows of the split that :func:`split_names` makes.

    With `classes` > 0 only the first so many training and test classes are used, of a closed set the same ones;
    validation classes are taken from those training classes. With `train_per_class` > 0 only the first so many training
    images of each class are used. A side that is empty is a :class:`UserError`.
    """
    inside_training = protocol in ("zero_shot_val", "kfold")
    if classes and inside_training:
        if classes > table.train_classes:
            raise UserError(f"--classes {classes}: {table.root} has {table.train_classes} training classes")
        table = replace(table, zero_shot_classes=classes)
    names = split_names(protocol, table, fold, folds)
    train = np.flatnonzero(names == "train")
    if train_per_class:
        rank = pd.Series(train).groupby(table.labels[train]).cumcount().to_numpy()
        train = train[rank < train_per_class]
    query, gallery = (np.flatnonzero((names == "test") | (names == role)) for role in ("query", "gallery"))
    split = Split(train, query, gallery, np.unique(table.labels[train]))
    if not len(train) or not len(query) or not len(gallery):
        sizes = f"{len(train)} training images, {len(query)} queries, {len(gallery)} gallery images"
        raise UserError(f"{table.root}: split {protocol} needs images on all sides, it has {sizes}")
    if not classes or inside_training:
        return split
    labels, tested = table.labels, np.unique(table.labels[split.test])
    for side, present in (("training", split.train_classes), ("test", tested)):
        if classes > len(present):
            raise UserError(f"--classes {classes}: the split has {len(present)} {side} classes")
    closed = np.isin(tested, split.train_classes).all()
    train_classes = (tested if closed else split.train_classes)[:classes]
    query, gallery = (rows[np.isin(labels[rows], tested[:classes])] for rows in (query, gallery))
    if not len(query) or not len(gallery):
        raise UserError(f"--classes {classes}: leaves {len(query)} queries, {len(gallery)} gallery images; use more")
    return Split(train[np.isin(labels[train], train_classes)], query, gallery, train_classes)


def hold_out(split: Split, table: ImageTable, share: float) -> Split:
    """The split with this share of its training classes in `validation`, drawn once for all runs: of ``zero_shot``,
    with a fifth, the classes that ``zero_shot_val`` tests. Raises :class:`UserError` for fewer than two on a side."""
    shuffled, count = _shuffled_classes(table), round(share * len(split.train_classes))
    if not 2 <= count <= len(split.train_classes) - 2:
        raise UserError(
            f"--validate {share:g} of {len(split.train_classes)} training classes: two must be left on each side"
        )
    classes = shuffled[np.isin(shuffled, split.train_classes)][:count]
    is_held_out = np.isin(table.labels[split.train], classes)
    kept = np.setdiff1d(split.train_classes, classes)
    return replace(split, train=split.train[~is_held_out], train_classes=kept, validation=split.train[is_held_out])


def _shuffled_classes(table: ImageTable) -> np.ndarray:
    """The numbers of the training classes in the order in which they are held out."""
    return np.random.Generator(np.random.PCG64(derive(0, "validation classes"))).permutation(table.train_classes)


def all_classes(table: ImageTable) -> Split:
    """All classes to train on, none to test on: for an embedder that has been chosen. Images that lists leave out stay
    out."""
    rows = np.flatnonzero(_official_split(table) != "")
    return Split(rows, rows[:0], rows[:0], np.unique(table.labels[rows]))


def check_fold(protocol: str, fold: int, folds: int) -> None:
    """Raises :class:`UserError` unless `fold` is one of `folds`, and both as by default without ``kfold``."""
    if folds < 2:
        raise UserError(f"--folds {folds}: must be at least 2")
    if not 0 <= fold < folds:
        raise UserError(f"--fold {fold}: must be from 0 to {folds - 1} (--folds {folds})")
    if protocol != "kfold" and (fold, folds) != (0, 4):
        raise UserError(f"--fold and --folds belong to --split kfold; --split is {protocol}")


def manifest(table: ImageTable, names: np.ndarray) -> str:
    """A split as CSV text, ``path,class,split`` with a row per image, as committed under ``datasets/``."""
    classes = np.array(table.class_names, dtype=object)[table.labels]
    frame = pd.DataFrame({"path": table.paths, "class": classes, "split": names})
    return frame.to_csv(index=False, lineterminator="\n")


def _official_split(table: ImageTable) -> np.ndarray:
    """What the data set's lists say of each image; without lists all are test images."""
    return np.full(len(table), "test", "U7") if table.official_split is None else table.official_split.astype("U7")
