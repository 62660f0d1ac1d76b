"""A data set of one's own: one folder per class, images below it, or the same below ``train/`` and ``test/``.

Without ``train`` and ``test`` the first half of the classes by name trains and the rest tests. With them, classes of ``train`` that are
not in ``test`` train (zero-shot); folders that share their classes are a closed set.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retrieval_bench.data.dataset import Dataset
from retrieval_bench.data.images import IMAGE_SUFFIXES, ImageTable
from retrieval_bench.errors import UserError
from retrieval_bench.progress import logger

Row = tuple[str, str, str | None]
"""(path, class name, side or None) of an image."""
TEST_FOLDERS = ("test", "val", "valid", "validation")


def open_folder(root: Path | None) -> ImageTable:
    """Reads ``root/<class>/**/<image>`` or ``root/{train,test}/<class>/**/<image>``; ordered by name, hidden files are passed over.

    Raises:
        UserError: no root, no class folder, fewer than four classes, an empty class, or a class with a single image.
    """
    if root is None:
        raise UserError("data set 'folder' is your own images: give --data-root FOLDER with one sub-folder per class")
    if not root.is_dir():
        raise UserError(f"{root}: not a folder; give --data-root FOLDER with one sub-folder per class")
    parts = side_folders(root)
    rows: list[Row] = [
        (path, name, side)
        for side, folder in parts.items()
        for path, name in _class_images(root / folder, root, 3 - len(parts))
    ]
    names = {name for _, name, _ in rows}
    if len(names) < 4:
        raise UserError(
            f"{root}: found {len(names)} class folders; at least 4 are needed, two to train on and two to test on"
        )
    return tabulate(root, rows if len(parts) > 1 else [(path, name, None) for path, name, _ in rows])


def side_folders(root: Path) -> dict[str, str]:
    """The folders below `root` that hold classes, by side: ``train`` and one of ``test``, ``val``..., or `root` itself as ``test``."""
    test = next((name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    folders = {entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    if test and folders == {"train", test}:
        return {"train": "train", "test": test}
    if "train" in folders and folders <= {"train", *TEST_FOLDERS}:
        raise UserError(
            f"{root}: holds {', '.join(sorted(folders))}; give a folder with 'train' and the one that is to be tested"
        )
    return {"test": "."}


def tabulate(root: Path, rows: list[Row]) -> ImageTable:
    """The table of the rows; classes by name, those that only train before the others.

    Where training and test images share classes, the sides are a closed-set split, and a zero-shot split takes half of the classes.
    """
    training, tested = (
        {name for _, name, side in rows if side and (side == "train") is train} for train in (True, False)
    )
    if tested and not training:
        logger.info(f"{root}: no image is marked as train, so zero_shot trains on half of the classes by name")
    disjoint = bool(training) and training.isdisjoint(tested)
    if training and not disjoint:
        logger.info(
            f"{root}: training and test images share classes: closed_set takes this split, zero_shot half of the classes by name"
        )
    classes = sorted({name for _, name, _ in rows}, key=lambda name: (disjoint and name not in training, name))
    number = {name: index for index, name in enumerate(classes)}
    labels = np.array([number[name] for _, name, _ in rows], dtype=np.int64)
    sides = np.array([side or "" for *_, side in rows]) if any(side is not None for *_, side in rows) else None
    return ImageTable(
        root, tuple(path for path, *_ in rows), labels, tuple(classes), len(training) if disjoint else 0, sides
    )


def _class_images(folder: Path, root: Path, least: int) -> list[tuple[str, str]]:
    """(path below `root`, class name) of each image below `folder`; refuses a class with fewer than `least`."""
    found: list[tuple[str, str]] = []
    for name in sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        images = sorted(path for path in (folder / name).rglob("*") if is_image(path, folder / name))
        if len(images) < least:
            raise UserError(
                f"{folder / name}: class has {len(images)} image(s); add images or remove the folder (retrieval needs 2 per class)"
            )
        found += [(path.relative_to(root).as_posix(), name) for path in images]
    return found


def is_image(path: Path, folder: Path) -> bool:
    """Whether `path`, below `folder`, is an image by its ending, and not hidden there."""
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden and path.is_file()


FOLDER = Dataset(about="your own images, one folder per class (--data-root FOLDER)", open=open_folder)
