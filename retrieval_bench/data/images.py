"""A data set in memory: names and labels of its images, in a fixed order. The pixels stay on disk until they are read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval_bench.errors import UserError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"}


@dataclass(frozen=True)
class ImageTable:
    """Images and their classes.

    Attributes:
        root: folder that `paths` are relative to.
        paths: (N,) file names with forward slashes.
        labels: int64 (N,), in 0..C-1, indices into `class_names`.
        class_names: (C,) names; zero-shot splits take the first classes for training.
    """

    root: Path
    paths: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def fingerprint(self) -> str:
        """SHA-256 over every image's name, class and size in bytes, not its content.

        Copies of a data set that were scaled or compressed differently have different fingerprints. Raises :class:`UserError` for a
        file that is missing or empty.
        """
        sha = hashlib.sha256()
        for path, label in zip(self.paths, self.labels, strict=True):
            try:
                size = (self.root / path).stat().st_size
            except FileNotFoundError:
                raise UserError(f"{self.root / path}: image is missing; restore it or fetch the data set again") from None
            if size == 0:
                raise UserError(f"{self.root / path}: image file is empty; restore it or fetch the data set again")
            sha.update(f"{path},{label},{size}\n".encode())
        return sha.hexdigest()


def expect_count(what: str, found: int, expected: int, root: Path) -> None:
    """Raises :class:`UserError` unless `found` is `expected`."""
    if found != expected:
        raise UserError(f"{root}: found {found:,} {what}, expected {expected:,}; the data set is incomplete or has foreign files")
