"""Oxford Flowers 102 (Nilsback and Zisserman, ICVGIP 2008): 8,189 photographs of 102 species.

Closed set: 2,040 training images (the official training and validation sets, 10 of each per species) and 6,149 test images. Retrieval has
no official split; zero-shot takes the first 51 species to train on, as is done with the other sets.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retrieval_bench.data.dataset import Counts, Dataset
from retrieval_bench.data.download import Archive
from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.lists import read_matlab
from retrieval_bench.data.places import Places
from retrieval_bench.errors import UserError

SITE = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
ARCHIVES = (
    Archive("imagelabels.mat", "e0620be6f572b9609742df49c70aed4d", (f"{SITE}imagelabels.mat",)),
    Archive("setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c", (f"{SITE}setid.mat",)),
    Archive("102flowers.tgz", "52808999861908f626f3c1f4e79d11fa", (f"{SITE}102flowers.tgz",)),
)


def open_flowers(root: Path | None) -> ImageTable:
    """Opens ``jpg/`` (or ``102flowers.tgz``), ``imagelabels.mat`` and ``setid.mat`` in one folder or its ``flowers-102`` (torchvision)."""
    places = Places(root, ARCHIVES, "Flowers 102")
    lists = places.find("imagelabels.mat", "flowers-102/imagelabels.mat")
    images = places.find("jpg", "flowers-102/jpg")
    (labels,) = read_matlab(lists, "labels")
    labels = np.asarray(labels, dtype=np.int64).reshape(-1) - 1
    sets = read_matlab(lists.with_name("setid.mat"), "trnid", "valid", "tstid")
    sides = np.full(len(labels), "", dtype="U7")
    for numbers, side in zip(sets, ("train", "train", "test"), strict=True):
        numbers = np.asarray(numbers, dtype=np.int64).reshape(-1) - 1
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(labels):
            raise UserError(
                f"{lists.with_name('setid.mat')}: image numbers do not fit imagelabels.mat; fetch the data set again"
            )
        sides[numbers] = side
    classes = tuple(f"{number:03d}" for number in range(1, int(labels.max(initial=-1)) + 2))
    if len(labels) and labels.min() < 0:
        raise UserError(f"{lists}: not the official file (a label below 1); fetch it again")
    paths = tuple(f"jpg/image_{number:05d}.jpg" for number in range(1, len(labels) + 1))
    return ImageTable(images.parent, paths, labels, classes, 51, sides)


FLOWERS = Dataset(
    about="Oxford Flowers 102, 8,189 photographs of 102 species; downloaded (345 MB) or read from --data-root",
    open=open_flowers,
    archives=ARCHIVES,
    counts=Counts(
        classes=102,
        images=8_189,
        splits={"closed_set": {"train": 2_040, "test": 6_149}, "zero_shot": {"train": 3_493, "test": 4_696}},
    ),
)
