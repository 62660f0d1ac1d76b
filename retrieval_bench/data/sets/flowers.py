"""Oxford Flowers 102 (Nilsback and Zisserman, ICVGIP 2008): 8,189 photographs of 102 species.

Closed set: 2,040 training images (the official training and validation sets, 10 of each per species) and 6,149 test
images. Retrieval has no official split; zero-shot trains on the first 51 species.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retrieval_bench.data.archive import find_files, read_matlab
from retrieval_bench.data.dataset import Counts, Dataset
from retrieval_bench.data.download import Archive
from retrieval_bench.data.table import ImageTable, numbered_table
from retrieval_bench.errors import UserError

SITE = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
ARCHIVES = (
    Archive("imagelabels.mat", "e0620be6f572b9609742df49c70aed4d", (f"{SITE}imagelabels.mat",)),
    Archive("setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c", (f"{SITE}setid.mat",)),
    Archive("102flowers.tgz", "52808999861908f626f3c1f4e79d11fa", (f"{SITE}102flowers.tgz",)),
)


def open_flowers(root: Path | None) -> ImageTable:
    """Opens ``jpg`` (or ``102flowers.tgz``) and two lists in one folder, or in torchvision's ``flowers-102`` below
    it."""
    alternatives = [(name, f"flowers-102/{name}") for name in ("imagelabels.mat", "jpg")]
    lists, images = find_files(root, ARCHIVES, "Flowers 102", *alternatives)
    (numbers,) = read_matlab(lists, "labels")
    sets = lists.with_name("setid.mat")
    split = np.full(len(numbers), "", dtype="U7")
    for rows, side in zip(read_matlab(sets, "trnid", "valid", "tstid"), ("train", "train", "test"), strict=True):
        if len(rows) and not 1 <= rows.min() <= rows.max() <= len(split):
            raise UserError(f"{sets}: image numbers do not fit imagelabels.mat; fetch the data set again")
        split[rows.astype(np.int64) - 1] = side
    paths = [f"jpg/image_{number:05d}.jpg" for number in range(1, len(split) + 1)]
    names = [f"{number:03d}" for number in range(1, int(numbers.max(initial=0)) + 1)]
    return numbered_table(images.parent, paths, numbers, names, 51, split)


FLOWERS = Dataset(
    about="Oxford Flowers 102, 8,189 photographs of 102 species; downloaded (345 MB) or read from --data-root",
    title="Oxford Flowers 102",
    classes_are="species",
    open=open_flowers,
    archives=ARCHIVES,
    counts=Counts(
        102, 8_189, {"closed_set": {"train": 2_040, "test": 6_149}, "zero_shot": {"train": 3_493, "test": 4_696}}
    ),
)
