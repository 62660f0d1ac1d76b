"""A data set of one's own: one folder per class, images below it. The first half of the classes by name trains, the rest tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retrieval_bench.data.dataset import Dataset
from retrieval_bench.data.images import IMAGE_SUFFIXES, ImageTable
from retrieval_bench.errors import UserError


def open_folder(root: Path | None) -> ImageTable:
    """Reads ``root/<class>/**/<image>``; classes and images are ordered by name, hidden files are passed over.

    Raises:
        UserError: no root, no class folder, fewer than four classes, an empty class, or a class with a single image.
    """
    if root is None:
        raise UserError("data set 'folder' is your own images: give --data-root FOLDER with one sub-folder per class")
    if not root.is_dir():
        raise UserError(f"{root}: not a folder; give --data-root FOLDER with one sub-folder per class")
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(classes) < 4:
        raise UserError(f"{root}: found {len(classes)} class folders; at least 4 are needed, two to train on and two to test on")
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = sorted(path for path in (root / name).rglob("*") if _is_image(path, root / name))
        if len(images) < 2:
            raise UserError(
                f"{root / name}: class has {len(images)} image(s); add images or remove the folder (retrieval needs 2 per class)"
            )
        paths += [path.relative_to(root).as_posix() for path in images]
        labels += [label] * len(images)
    return ImageTable(root, tuple(paths), np.array(labels, dtype=np.int64), tuple(classes))


def _is_image(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden and path.is_file()


FOLDER = Dataset(about="your own images, one folder per class (--data-root FOLDER)", open=open_folder)
