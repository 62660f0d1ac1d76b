"""CIFAR-10 (Krizhevsky 2009): 60,000 images of 32 x 32 pixels, ten classes; the data of the paper Pruning from Scratch.

torchvision downloads and checks the files; their images are written as PNG once. Copies of the images as files below
``train/<class>/`` and ``test/<class>/`` are opened as they are. Closed set: the official 50,000 and 10,000. Retrieval
has no official split; zero-shot takes the first five classes to train on.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

from retrieval_bench.data.archive import extracted
from retrieval_bench.data.dataset import Counts, Dataset
from retrieval_bench.data.sets.folder import open_folder
from retrieval_bench.data.table import ImageTable
from retrieval_bench.errors import UserError, first_line
from retrieval_bench.files import cache_dir, made_once


def open_cifar10(root: Path | None) -> ImageTable:
    """Opens the images, downloaded, or from `root`: torchvision's folder (``cifar-10-batches-py`` or its parent); a
    folder with ``train/<class>`` and ``test/<class>`` in it or one below it; an archive of either, or its folder.

    Files are read as they are: of JPEG copies, the pixels are near the official ones.
    """
    if root is not None:
        is_official = (root / "cifar-10-batches-py").is_dir()  # its archive may lie beside it
        archives = [root] if root.is_file() else [] if is_official else sorted(root.glob("cifar*10*.tar*"))[:1]
        for folder in (root, *map(extracted, archives)):
            sides = [*folder.glob("train"), *folder.glob("*/train")]
            if images := next((side.parent for side in sides if (side.parent / "test").is_dir()), None):
                return open_folder(images)
            root = folder
    source = cache_dir() / "downloads" if root is None else root.parent if root.name == "cifar-10-batches-py" else root
    folder = cache_dir() / f"cifar10-{hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:10]}"
    return open_folder(made_once(folder, "writing the images of CIFAR-10", partial(_write, source, root is None)))


def _write(source: Path, download: bool, folder: Path) -> None:
    from torchvision import datasets  # here, so that listing the data sets does not load torch

    for side in ("train", "test"):
        try:
            images = datasets.CIFAR10(str(source), train=side == "train", download=download)
        except (RuntimeError, OSError) as error:
            hint = "get cifar-10-python.tar.gz by hand and give --data-root" if download else "files missing or damaged"
            raise UserError(f"{source}: no CIFAR-10 here: {hint} ({first_line(error)})") from None
        for number in range(len(images)):
            image, label = images[number]
            path = folder / side / f"{label}_{images.classes[label]}" / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)


CIFAR10 = Dataset(
    about="CIFAR-10, 60,000 images of ten classes, 32 x 32 pixels; downloaded (170 MB) or read from --data-root",
    title="CIFAR-10",
    open=open_cifar10,
    counts=Counts(
        10, 60_000, {"closed_set": {"train": 50_000, "test": 10_000}, "zero_shot": {"train": 30_000, "test": 30_000}}
    ),
)
