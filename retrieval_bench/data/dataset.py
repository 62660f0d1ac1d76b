"""What every data set's file provides: how to open it, where its training classes end, and its published counts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from retrieval_bench.data.images import ImageTable, expect_count
from retrieval_bench.data.splits import manifest, zero_shot
from retrieval_bench.errors import UserError


@dataclass(frozen=True)
class Counts:
    """Published sizes, asserted whenever the set is opened: classes, images in all, training and test images of the zero-shot split."""

    classes: int
    images: int
    train: int
    test: int


@dataclass(frozen=True)
class Dataset:
    """One data set.

    Attributes:
        about: one line for `data list`.
        open: from a folder or archive (None: fetch into the cache) to the table of images.
        counts: published sizes, or None for data of one's own.
        zero_shot_classes: how many classes, from the first, the zero-shot split trains on; 0 means half of them.
        manifest_sha256: digest of the committed ``datasets/<name>.csv``, every image with class and side; empty for none.
    """

    about: str
    open: Callable[[Path | None], ImageTable]
    counts: Counts | None = None
    zero_shot_classes: int = 0
    manifest_sha256: str = ""

    def train_classes(self, table: ImageTable) -> int:
        """How many classes, from the first, the zero-shot split trains on: the published number, or half."""
        return self.zero_shot_classes or len(table.class_names) // 2

    def check(self, table: ImageTable) -> None:
        """Raises :class:`UserError` if a count differs from the published one, or any name, class or side from the committed manifest."""
        if self.counts is None:
            return
        expect_count("images", len(table), self.counts.images, table.root)
        expect_count("classes", len(table.class_names), self.counts.classes, table.root)
        split = zero_shot(table.labels, self.train_classes(table))
        expect_count("training images", len(split.train), self.counts.train, table.root)
        expect_count("test images", len(split.test), self.counts.test, table.root)
        if self.manifest_sha256 and hashlib.sha256(manifest(table, split).encode()).hexdigest() != self.manifest_sha256:
            raise UserError(f"{table.root}: the counts are right but names or classes differ from the data set's manifest; fetch it again")
