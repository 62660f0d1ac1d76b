"""A data set in memory: names and labels of its images, in a fixed order. The pixels stay on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from retrieval_bench.errors import UserError
from retrieval_bench.progress import logger

SPLIT_NAMES = ("train", "test", "query", "gallery", "")
"""Of an image: trained on; tested, as a query and in the gallery; only a query; only in the gallery; left out."""


@dataclass(frozen=True)
class ImageTable:
    """Images and their classes.

    Attributes:
        root: folder that `paths` are relative to.
        paths: (N,) file names with forward slashes.
        labels: int64 (N,), in 0..C-1, indices into `class_names`.
        class_names: (C,) names; zero-shot splits take the first classes for training.
        zero_shot_classes: how many classes, from the first, the zero-shot split trains on; 0 means half of them.
        official_split: (N,) of :data:`SPLIT_NAMES`, from the data set's own lists; None where it has no lists.
    """

    root: Path
    paths: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    zero_shot_classes: int = 0
    official_split: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def train_classes(self) -> int:
        """How many classes, from the first, the zero-shot split trains on."""
        return self.zero_shot_classes or len(self.class_names) // 2

    @cached_property
    def files(self) -> tuple[tuple[int, int], ...]:
        """(size in bytes, time of change in nanoseconds) of each; a :class:`UserError` if one is missing or empty."""
        result = []
        for path in (self.root / path for path in self.paths):
            if not str(path).isprintable() and str(path) != str(path).encode(errors="replace").decode():
                raise UserError(f"{str(path)!a}: the file's name is not UTF-8 text; rename it")
            try:
                status = path.stat()
            except (FileNotFoundError, NotADirectoryError):
                missing = f"{path}: image" if path.parent.is_dir() else f"{path.parent}: folder"
                raise UserError(f"{missing} is missing; restore it or fetch the data set again") from None
            if status.st_size == 0:
                raise UserError(f"{path}: image file is empty; restore it or fetch the data set again")
            result.append((status.st_size, status.st_mtime_ns))
        return tuple(result)

    def fingerprint(self) -> str:
        """SHA-256 over name, class and size in bytes of every image, so that scaled or re-compressed copies differ."""
        sha = hashlib.sha256()
        for path, label, (size, _) in zip(self.paths, self.labels, self.files, strict=True):
            sha.update(f"{path},{label},{size}\n".encode())
        return sha.hexdigest()

    def split_fingerprint(self) -> str:
        """SHA-256 over the official split."""
        return hashlib.sha256(",".join([] if self.official_split is None else self.official_split).encode()).hexdigest()


def numbered_table(
    root: Path,
    paths: Iterable[str],
    numbers: npt.ArrayLike,
    class_names: Iterable[str],
    zero_shot_classes: int,
    official_split: np.ndarray | None = None,
) -> ImageTable:
    """The table of images with class numbers from 1; raises :class:`UserError` for a number without a name."""
    labels, names = np.asarray(numbers, dtype=np.int64) - 1, tuple(map(str, class_names))
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        raise UserError(f"{root}: class numbers in its lists do not fit the class names; fetch the data set again")
    return ImageTable(root, tuple(paths), labels, names, zero_shot_classes, official_split)


def named_table(root: Path, paths: Sequence[str], names: Sequence[str], split: Sequence[str] | None) -> ImageTable:
    """The table of images with class names; classes are ordered by name, those that only train before the others.

    If both sides share classes, `split` is a closed set, and a zero-shot split trains on half of the classes.
    """
    sides = list(zip(names, split or (), strict=bool(split)))
    training = {name for name, side in sides if side == "train"}
    tested = {name for name, side in sides if side not in ("train", "")}
    disjoint = bool(training) and training.isdisjoint(tested)
    half = "zero_shot trains on half of the classes by name"
    if tested and not training:
        logger.info(f"{root}: no image is marked as train, so {half}")
    if training and not disjoint:
        logger.info(f"{root}: training and test images share classes: closed_set uses this split, {half}")
    classes = sorted(set(names), key=lambda name: (disjoint and name not in training, name))
    number = {name: index for index, name in enumerate(classes)}
    labels = np.array([number[name] for name in names], dtype=np.int64)
    official_split = None if split is None else np.array(split)
    return ImageTable(root, tuple(paths), labels, tuple(classes), len(training) if disjoint else 0, official_split)
