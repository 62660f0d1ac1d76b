"""Your own images: one folder per class, images below it, or the same below ``train/`` and ``test/``.

Without ``train`` and ``test`` the first half of the classes by name trains and the rest tests. With them, classes of
``train`` that are not in ``test`` train (zero-shot); folders that share their classes are a closed set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from retrieval_bench.data.archive import extracted
from retrieval_bench.data.dataset import Dataset
from retrieval_bench.data.listing import list_images, subfolders
from retrieval_bench.data.table import ImageTable, named_table
from retrieval_bench.errors import UserError

TEST_FOLDERS = ("test", "val", "valid", "validation")


def open_folder(root: Path | None) -> ImageTable:
    """Reads ``root/<class>/**/<image>`` or ``root/{train,test}/<class>/**/<image>``, by name, as
    :func:`~retrieval_bench.data.listing.list_images` finds them, or the same in an archive (zip, tar).

    Fewer than four classes, or a class with fewer than two images, are problems of the table's listing.
    """
    if root is None:
        raise UserError("data set 'folder' is your own images; give --data-root FOLDER with one sub-folder per class")
    if root.is_file():
        root = extracted(root)
        while len(inside := subfolders(root)) == 1:  # an archive often holds the folder itself
            root /= inside[0]
    listing = list_images(root)
    sides = class_folders(root, [name for name in listing.folders if "/" not in name])
    depth = len(sides)
    sizes = {name: 0 for name in listing.folders if name.count("/") == depth - 1}
    paths, names, split = [], [], []
    for path in sorted(listing.images, key=lambda path: depth == 2 and not path.startswith("train/")):
        first, *rest = path.split("/")
        if len(rest) < depth:
            listing.pass_over("beside the class folders", path)
            continue
        paths.append(path)
        names.append(rest[0] if depth == 2 else first)
        split.append("train" if first == "train" else "test")
        sizes["/".join(path.split("/")[:depth])] += 1
    small = [(name, size) for name, size in sizes.items() if size < 3 - depth]
    listing.problems += [
        f"{root / name}: class has {size} image(s), retrieval needs 2; add some or remove it" for name, size in small
    ]
    if len(set(names)) < 4:
        listing.problems.append(
            f"{root}: has {len(set(names))} class folders; at least 4 are needed, half of them to test on"
        )
    return replace(named_table(root, paths, names, split if depth == 2 else None), listing=listing)


def class_folders(root: Path, folders: Sequence[str]) -> tuple[str, ...]:
    """Of the `folders` in `root` those that hold classes, ``train`` and one of ``test``, ``val``...; or ``("",)``."""
    test = next((name for name in TEST_FOLDERS if name in folders), None)
    if test and set(folders) == {"train", test}:
        return ("train", test)
    if "train" in folders and {"train", *TEST_FOLDERS}.issuperset(folders):
        raise UserError(f"{root}: holds {', '.join(sorted(folders))}; give one with 'train' and a single test folder")
    return ("",)


FOLDER = Dataset(about="your own images, one folder per class (--data-root FOLDER)", open=open_folder)
