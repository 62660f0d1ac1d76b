"""A folder of one's own before anything is trained: which images can be used, and everything odd about it at once."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from retrieval_bench.data.catalog import open_table
from retrieval_bench.data.listing import printable
from retrieval_bench.data.table import ImageTable
from retrieval_bench.data.verify import some, summarize, verify
from retrieval_bench.errors import UserError
from retrieval_bench.files import write_text
from retrieval_bench.seeding import derive

FEWEST_CLASSES = 4
"""Two to train on and two to test on."""
IMAGES_EACH = 8
"""Images of each class in a sample, at least: more classes say more about new classes than more images do."""


@dataclass(frozen=True)
class Survey:
    """What a folder holds: all images that decode, those of classes with enough of them, the median of their shorter
    sides (pixels), and what was found, one line each."""

    readable: ImageTable
    usable: ImageTable
    side: int
    lines: list[str]

    @property
    def sizes(self) -> np.ndarray:
        """int64 (C,): usable images of each class."""
        return np.bincount(self.usable.labels)


def survey(root: Path, min_images: int = 2) -> Survey:
    """Decodes every image below the class folders of `root`. What cannot be used is passed over, counted and said:
    files that do not decode, empty classes and classes with fewer than `min_images` images.

    Raises:
        UserError: no such folder, no class folders, or fewer than four classes with enough images.
    """
    table = open_table("folder", root, strict=False)
    if not len(table):
        passed_over = table.listing.passed_over() if table.listing else ""
        raise UserError(
            f"{root}: no images in class folders{f' (passed over: {passed_over})' if passed_over else ''}; put the "
            "images of each class into a folder of its own"
        )
    results = summarize(table)
    lines, _ = verify(table, None, results)
    is_read = np.array([not isinstance(result, str) for result in results])
    counts = np.bincount(table.labels[is_read], minlength=len(table.class_names))
    depth, folders = (0 if table.official_split is None else 1), table.listing.folders if table.listing else []
    empty = {name.split("/")[-1] for name in folders if name.count("/") == depth} - {*table.class_names}
    small = [f"{table.class_names[label]} ({counts[label]})" for label in np.flatnonzero(counts < min_images)]
    if small := small + [f"{printable(name)} (0)" for name in sorted(empty)]:
        lines.append(
            f"{len(small):,} classes with fewer than {min_images} images passed over: {', '.join(some(small))}"
        )
    usable = select(table, np.flatnonzero(is_read & (counts[table.labels] >= min_images)))
    if len(usable.class_names) < FEWEST_CLASSES:
        raise UserError(
            f"{root}: {len(usable.class_names)} classes with at least {min_images} images that decode; "
            f"{FEWEST_CLASSES} are needed, to train on some and test on the others"
        )
    side = int(np.median([min(result.size) for result in results if not isinstance(result, str)]))
    return Survey(select(table, np.flatnonzero(is_read)), usable, side, lines)


def select(table: ImageTable, rows: np.ndarray) -> ImageTable:
    """The table with these rows (ascending) only, and only the classes that they have."""
    classes, labels = np.unique(table.labels[rows], return_inverse=True)
    names = tuple(table.class_names[label] for label in classes)
    paths = tuple(table.paths[row] for row in rows)
    return replace(table, paths=paths, labels=labels, class_names=names, official_split=None, zero_shot_classes=0)


def sample(labels: np.ndarray, most: int) -> np.ndarray:
    """Rows, ascending, of at most `most` images: of all classes where that leaves :data:`IMAGES_EACH` of each,
    otherwise of as many classes as fit, but at least four. Classes and images are drawn once for all."""
    if len(labels) <= most:
        return np.arange(len(labels))
    draws, count = np.random.Generator(np.random.PCG64(derive(0, "sample"))), labels.max() + 1
    each = max(IMAGES_EACH, most // count)
    classes = [draws.permutation(np.flatnonzero(labels == label))[:each] for label in draws.permutation(count)]
    fitting = int((np.cumsum([len(rows) for rows in classes]) <= most).sum())
    return np.sort(np.concatenate(classes[: max(FEWEST_CLASSES, fitting)]))


def write_image_list(table: ImageTable, path: Path) -> None:
    """Writes the images as a CSV file that data set ``table`` opens. All are marked as training images, so that
    ``kfold`` validates on folds of all classes."""
    text, root = io.StringIO(), table.root.resolve()
    named = zip(table.paths, table.labels, strict=True)
    rows = [((root / name).as_posix(), table.class_names[label], "train") for name, label in named]
    csv.writer(text, lineterminator="\n").writerows([("path", "label", "split"), *rows])
    write_text(path, text.getvalue())
