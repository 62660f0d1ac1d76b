"""A data set in memory: names and labels of its images, in a fixed order. The pixels stay on disk until they are read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from retrieval_bench.errors import UserError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"}
SIDES = ("train", "test", "query", "gallery", "")
"""What a split says of an image: trained on; tested, as a query and in the gallery; only the one; only the other; left out."""


@dataclass(frozen=True)
class ImageTable:
    """Images and their classes.

    Attributes:
        root: folder that `paths` are relative to.
        paths: (N,) file names with forward slashes.
        labels: int64 (N,), in 0..C-1, indices into `class_names`.
        class_names: (C,) names; zero-shot splits take the first classes for training.
        zero_shot_classes: how many classes, from the first, the zero-shot split trains on; 0 means half of them.
        sides: (N,) of :data:`SIDES`, what the data set's own lists say of each image; None where it has no lists.
    """

    root: Path
    paths: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    zero_shot_classes: int = 0
    sides: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def train_classes(self) -> int:
        """How many classes, from the first, the zero-shot split trains on."""
        return self.zero_shot_classes or len(self.class_names) // 2

    @cached_property
    def files(self) -> tuple[tuple[int, int], ...]:
        """(size in bytes, time of the last change in nanoseconds) of each image.

        Raises:
            UserError: a file or its folder is missing, or the file is empty; the line names it.
        """
        return tuple(_status(self.root / path) for path in self.paths)

    def fingerprint(self) -> str:
        """SHA-256 over every image's name, class and size in bytes, not its content.

        Copies of a data set that were scaled or compressed differently have different fingerprints. Raises :class:`UserError` for a
        file that is missing or empty.
        """
        sha = hashlib.sha256()
        for path, label, (size, _) in zip(self.paths, self.labels, self.files, strict=True):
            sha.update(f"{path},{label},{size}\n".encode())
        return sha.hexdigest()

    def sides_fingerprint(self) -> str:
        """SHA-256 over what the data set's own lists say of each image."""
        return hashlib.sha256(",".join([] if self.sides is None else self.sides.tolist()).encode()).hexdigest()


def _status(path: Path) -> tuple[int, int]:
    if not str(path).isprintable() and str(path) != str(path).encode(errors="replace").decode():
        raise UserError(f"{str(path)!a}: the file's name is no UTF-8 text; rename it")
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if not path.parent.is_dir():
            raise UserError(f"{path.parent}: folder is missing; restore it or fetch the data set again") from None
        raise UserError(f"{path}: image is missing; restore it or fetch the data set again") from None
    if status.st_size == 0:
        raise UserError(f"{path}: image file is empty; restore it or fetch the data set again")
    return status.st_size, status.st_mtime_ns


def expect_count(what: str, found: int, expected: int, root: Path) -> None:
    """Raises :class:`UserError` unless `found` is `expected`."""
    if found != expected:
        raise UserError(
            f"{root}: found {found:,} {what}, expected {expected:,}; the data set is incomplete or has foreign files"
        )
