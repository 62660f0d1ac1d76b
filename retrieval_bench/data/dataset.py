"""What every data set's file provides: how to open it, what to fetch, and its published counts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from retrieval_bench.data.download import Archive
from retrieval_bench.data.splits import manifest, split_names
from retrieval_bench.data.table import ImageTable
from retrieval_bench.errors import UserError


@dataclass(frozen=True)
class Counts:
    """Published sizes: classes and images in all, and images on each side by protocol."""

    classes: int
    images: int
    splits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """One data set.

    Attributes:
        about: one line for `data list`.
        title: its name in sentences; `classes_are`: what its classes are called there.
        open: from a folder or archive (None: what is in the cache, fetched first if need be) to the table of images.
        archives: the files that `open` fetches.
        counts: published sizes, or None for data of one's own.
        ks: the K of Recall@K that papers report on this set.
        manifests: by protocol, the digest of the committed ``datasets/<name>[.<protocol>].csv``.
    """

    about: str
    open: Callable[[Path | None], ImageTable]
    archives: tuple[Archive, ...] = ()
    counts: Counts | None = None
    ks: tuple[int, ...] = (1, 2, 4, 8)
    manifests: Mapping[str, str] = field(default_factory=dict)
    title: str = ""
    classes_are: str = "classes"

    def check(self, table: ImageTable) -> None:
        """Raises :class:`UserError` if a count is not the published one, or a name, class or split not the manifest's.

        Closed-set counts are checked where the copy has an official split (some re-packagings have none).
        """
        if self.counts is None:
            return
        _compare(table, "images", len(table), self.counts.images)
        _compare(table, "classes", len(table.class_names), self.counts.classes)
        for protocol, sides in self.counts.splits.items():
            if protocol != "closed_set" or table.official_split is not None:
                counted = Counter(split_names(protocol, table).tolist())
                for side, expected in sides.items():
                    _compare(table, f"{side} images ({protocol})", counted[side], expected)
        for protocol, digest in self.manifests.items():
            if hashlib.sha256(manifest(table, split_names(protocol, table)).encode()).hexdigest() != digest:
                raise UserError(
                    f"{table.root}: the counts are right but names, classes or sides differ from the data set's "
                    f"{protocol} manifest; fetch it again"
                )


def _compare(table: ImageTable, what: str, count: int, expected: int) -> None:
    if count != expected:
        raise UserError(
            f"{table.root}: has {count:,} {what}, expected {expected:,}; it is incomplete or has foreign files"
        )
