"""What every data set's file provides: how to open it, what to fetch, and its published counts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from retrieval_bench.data.download import Archive
from retrieval_bench.data.images import ImageTable, expect_count
from retrieval_bench.data.splits import PROTOCOLS, manifest
from retrieval_bench.errors import UserError

SIDE_NAMES = {"train": "training images", "test": "test images", "query": "query images", "gallery": "gallery images"}


@dataclass(frozen=True)
class Counts:
    """Published sizes, asserted whenever the set is opened.

    Attributes:
        classes: in all.
        images: in all.
        splits: images on each side, by protocol, as far as they are published.
    """

    classes: int
    images: int
    splits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """One data set.

    Attributes:
        about: one line for `data list`.
        open: from a folder or archive (None: what is in the cache, fetched first if need be) to the table of images.
        archives: the files that `open` fetches.
        counts: published sizes, or None for data of one's own.
        ks: the K of Recall@K that papers report on this set.
        manifests: by protocol, the digest of the committed ``datasets/<name>[.<protocol>].csv``, every image with class and side.
    """

    about: str
    open: Callable[[Path | None], ImageTable]
    archives: tuple[Archive, ...] = ()
    counts: Counts | None = None
    ks: tuple[int, ...] = (1, 2, 4, 8)
    manifests: Mapping[str, str] = field(default_factory=dict)

    def check(self, table: ImageTable) -> None:
        """Raises :class:`UserError` if a count differs from the published one, or any name, class or side from the committed manifest.

        The closed-set counts are checked where the copy says which images are its official training images (some re-packagings do not).
        """
        if self.counts is None:
            return
        expect_count("images", len(table), self.counts.images, table.root)
        expect_count("classes", len(table.class_names), self.counts.classes, table.root)
        for protocol, sides in self.counts.splits.items():
            if protocol == "closed_set" and table.sides is None:
                continue
            found = Counter(PROTOCOLS[protocol](table, 0, 1)["split"])
            for side, expected in sides.items():
                expect_count(f"{SIDE_NAMES[side]} ({protocol})", found[side], expected, table.root)
        for protocol, expected in self.manifests.items():
            if hashlib.sha256(manifest(PROTOCOLS[protocol](table, 0, 1)).encode()).hexdigest() != expected:
                raise UserError(
                    f"{table.root}: the counts are right but names, classes or sides differ from the data set's {protocol} manifest; "
                    "fetch it again"
                )
