"""A data set in memory: names and labels of its images, in a fixed order. The pixels stay on disk."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retrieval_bench.data.listing import Listing, check_name
from retrieval_bench.data.reading import in_threads
from retrieval_bench.errors import UserError
from retrieval_bench.files import cache_dir, digest, write_text
from retrieval_bench.progress import logger

FileState = tuple[int, int, int, int]
"""Of a file: size in bytes, times of change of its content and of its entry (nanoseconds), inode."""
SETTLED = 2_000_000_000
"""Nanoseconds after which a further change of a file must change its times."""
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
        own: the images are the user's, and may be replaced at any time.
        listing: what else is in the folder, where the folder was listed.
    """

    root: Path
    paths: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    zero_shot_classes: int = 0
    official_split: np.ndarray | None = None
    own: bool = False
    listing: Listing | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def train_classes(self) -> int:
        """How many classes, from the first, the zero-shot split trains on."""
        return self.zero_shot_classes or len(self.class_names) // 2

    @cached_property
    def files(self) -> tuple[FileState, ...]:
        """The state of each file; a :class:`UserError` if one is missing or empty, or has a name that is not text."""
        result = []
        for path in (self.root / path for path in self.paths):
            check_name(path)
            try:
                status = path.stat()
            except (FileNotFoundError, NotADirectoryError):
                missing = f"{path}: image" if path.parent.is_dir() else f"{path.parent}: folder"
                raise UserError(f"{missing} is missing; restore it or fetch the data set again") from None
            if status.st_size == 0:
                raise UserError(f"{path}: image file is empty; restore it or fetch the data set again")
            result.append((status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
        return tuple(result)

    @cached_property
    def contents(self) -> tuple[str, ...]:
        """What stands for the bytes of each image: their digest if `own`, otherwise size and time of change."""
        if self.own:
            return file_digests(self.root, self.paths, self.files)
        return tuple(f"{size},{changed}" for size, changed, *_ in self.files)

    def check_unchanged(self) -> None:
        """Raises :class:`UserError` if an image has become another since :attr:`contents` was first read."""
        for path, before, now in zip(self.paths, self.contents, replace(self).contents, strict=True):
            if before != now:
                raise UserError(f"{self.root / path}: was changed while images were read; run again, nothing is kept")

    def fingerprint(self) -> str:
        """SHA-256 over name, class and size in bytes of every image, so that scaled or re-compressed copies differ.

        Of `own` images the digest stands in place of the size, and the split is part of it: nothing else tells one
        state of them from another.
        """
        sha = hashlib.sha256()
        contents = self.contents if self.own else [str(size) for size, *_ in self.files]
        for path, label, content in zip(self.paths, self.labels, contents, strict=True):
            sha.update(f"{path},{label},{content}\n".encode())
        if self.own:
            sha.update(f"{self.train_classes} {self.split_fingerprint()}".encode())
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


def file_digests(root: Path, paths: Sequence[str], states: Sequence[FileState]) -> tuple[str, ...]:
    """The SHA-256 of each file's bytes. Digests are kept in the cache, and files that have not changed since are not
    read again."""
    store = cache_dir() / "digests" / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}.json"
    known: dict[str, list[Any]] = {}
    with suppress(OSError, ValueError):
        known = json.loads(store.read_text(encoding="utf-8"))
    rows = [(path, list(state)) for path, state in zip(paths, states, strict=True)]
    changed = [(path, state) for path, state in rows if known.get(path, [None])[:-1] != state]
    now = time.time_ns()
    read = in_threads(lambda row: digest(root / row[0]), changed, "comparing files", len(changed))
    found = {path: [*state, value] for (path, state), value in zip(changed, read, strict=True)}
    settled = {path: entry for path, entry in found.items() if max(entry[1:3]) < now - SETTLED}
    if settled:
        with suppress(OSError):  # digests are only a saving of time
            write_text(store, json.dumps(known | settled))
    return tuple((found.get(path) or known[path])[-1] for path in paths)
