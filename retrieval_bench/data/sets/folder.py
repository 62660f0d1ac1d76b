"""Your own images: one folder per class, images below it, or the same below ``train/`` and ``test/``.

Without ``train`` and ``test`` the first half of the classes by name trains and the rest tests. With them, classes of
``train`` that are not in ``test`` train (zero-shot); folders that share their classes are a closed set.
"""

from __future__ import annotations

from pathlib import Path

from retrieval_bench.data.dataset import Dataset
from retrieval_bench.data.reading import is_image
from retrieval_bench.data.table import ImageTable, named_table
from retrieval_bench.errors import UserError

TEST_FOLDERS = ("test", "val", "valid", "validation")


def open_folder(root: Path | None) -> ImageTable:
    """Reads ``root/<class>/**/<image>`` or ``root/{train,test}/<class>/**/<image>``, without hidden files, by name.

    Raises :class:`UserError` if there are fewer than four classes, or one with fewer than two images.
    """
    if root is None or not root.is_dir():
        problem = "data set 'folder' is your own images" if root is None else f"{root}: not a folder"
        raise UserError(f"{problem}; give --data-root FOLDER with one sub-folder per class")
    sides = class_folders(root)
    paths, names, split = [], [], []
    for side, below in sides.items():
        for folder in sorted(_visible_folders(root / below)):
            images = sorted(path for path in folder.rglob("*") if is_image(path, folder))
            if len(images) < 3 - len(sides):
                raise UserError(f"{folder}: class has {len(images)} image(s), retrieval needs 2; add some or remove it")
            paths += [path.relative_to(root).as_posix() for path in images]
            names += [folder.name] * len(images)
            split += [side] * len(images)
    if len(set(names)) < 4:
        raise UserError(f"{root}: has {len(set(names))} class folders; at least 4 are needed, half of them to test on")
    return named_table(root, paths, names, split if len(sides) > 1 else None)


def class_folders(root: Path) -> dict[str, str]:
    """The folders with classes by side: ``train`` and one of ``test``, ``val``..., or `root` itself as ``test``."""
    test = next((name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    folders = {folder.name for folder in _visible_folders(root)}
    if test and folders == {"train", test}:
        return {"train": "train", "test": test}
    if "train" in folders and folders <= {"train", *TEST_FOLDERS}:
        raise UserError(f"{root}: holds {', '.join(sorted(folders))}; give one with 'train' and a single test folder")
    return {"test": "."}


def _visible_folders(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]


FOLDER = Dataset(about="your own images, one folder per class (--data-root FOLDER)", open=open_folder)
