"""CUB-200-2011 (Wah, Branson, Welinder, Perona and Belongie, Caltech CNS-TR-2011-001): 11,788 photographs of 200 bird species.

Zero-shot split: classes 1-100 train (5,864 images), 101-200 test (5,924). No bounding boxes are used.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retrieval_bench.data.archive import extracted
from retrieval_bench.data.dataset import Counts, Dataset
from retrieval_bench.data.download import Archive, fetch
from retrieval_bench.data.images import ImageTable
from retrieval_bench.errors import UserError

ARCHIVE = Archive(
    name="CUB_200_2011.tgz",
    md5="97eceeb196236b17998738112f37df78",
    urls=(
        "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
        "http://www.vision.caltech.edu/visipedia-data/CUB-200-2011/CUB_200_2011.tgz",
    ),
)


def open_cub(root: Path | None) -> ImageTable:
    """Opens the official layout: an archive, the folder ``CUB_200_2011``, or a folder that holds it; None downloads the archive.

    An archive given by hand may be a re-packed one, so only a download is held to the official MD5; counts are asserted for all.
    """
    if root is None:
        root = extracted(fetch(ARCHIVE))
    elif root.is_file():
        root = extracted(root)
    folder = _find(root)
    names = dict(_read_pairs(folder / "images.txt"))
    image_class = dict(_read_pairs(folder / "image_class_labels.txt"))
    classes = dict(_read_pairs(folder / "classes.txt"))
    if names.keys() != image_class.keys():
        raise UserError(f"{folder}: images.txt and image_class_labels.txt name different images; fetch the data set again")
    order = sorted(names, key=int)
    try:
        labels = np.array([int(image_class[key]) - 1 for key in order], dtype=np.int64)
        class_names = tuple(classes[str(number + 1)] for number in range(len(classes)))
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
            raise ValueError
    except (ValueError, KeyError):
        raise UserError(f"{folder}: class numbers in image_class_labels.txt do not fit classes.txt; fetch the data set again") from None
    return ImageTable(folder / "images", tuple(names[key] for key in order), labels, class_names)


def _find(root: Path) -> Path:
    for folder in (root, root / "CUB_200_2011"):
        if (folder / "images.txt").is_file():
            return folder
    raise UserError(f"{root}: no CUB-200-2011 here (images.txt is missing); give the folder CUB_200_2011 or its archive")


def _read_pairs(path: Path) -> list[tuple[str, str]]:
    """The lines ``key value`` of one of the set's text files."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: file is missing; the data set is incomplete") from None
    pairs = [line.split(maxsplit=1) for line in lines if line.strip()]
    if any(len(pair) != 2 or not pair[0].isdigit() for pair in pairs):
        raise UserError(f"{path}: not the official file (lines are 'number value'); fetch the data set again")
    return [(key, value.strip()) for key, value in pairs]


CUB = Dataset(
    about="CUB-200-2011, 11,788 photographs of 200 bird species; downloaded (1.1 GB) or read from --data-root",
    open=open_cub,
    counts=Counts(classes=200, images=11_788, train=5_864, test=5_924),
    zero_shot_classes=100,
    manifest_sha256="486229dc9ff255c987c82041dd9210c23066f7b197edf5a1f5f0def66b4cbcc5",
)
