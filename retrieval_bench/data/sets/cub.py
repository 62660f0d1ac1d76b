"""CUB-200-2011 (Wah et al., Caltech CNS-TR-2011-001): 11,788 photographs of 200 bird species.

Zero-shot split: classes 1-100 train (5,864 images), 101-200 test (5,924). Closed set: the official 5,994 and 5,794
images of all classes. No bounding boxes are used.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retrieval_bench.data.archive import find_files, read_columns
from retrieval_bench.data.dataset import Counts, Dataset
from retrieval_bench.data.download import Archive
from retrieval_bench.data.table import ImageTable, numbered_table
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
    """Opens the archive, the folder ``CUB_200_2011``, or a folder that holds either; None downloads the archive."""
    (images,) = find_files(root, (ARCHIVE,), "CUB-200-2011", ("images.txt", "CUB_200_2011/images.txt"))
    folder = images.parent
    paths = dict(read_columns(images, int, str))
    labels = dict(read_columns(folder / "image_class_labels.txt", int, int))
    training = dict(read_columns(folder / "train_test_split.txt", int, int))
    names = [name for _, name in sorted(read_columns(folder / "classes.txt", int, str))]
    if not paths.keys() == labels.keys() == training.keys():
        raise UserError(f"{folder}: images.txt and the other lists name different images; fetch the data set again")
    order = sorted(paths)
    split = np.array(["train" if training[image] == 1 else "test" for image in order])
    numbers = [labels[image] for image in order]
    return numbered_table(folder / "images", [paths[image] for image in order], numbers, names, 100, split)


CUB = Dataset(
    about="CUB-200-2011, 11,788 photographs of 200 bird species; downloaded (1.1 GB) or read from --data-root",
    title="CUB-200-2011",
    classes_are="species",
    open=open_cub,
    archives=(ARCHIVE,),
    counts=Counts(
        200, 11_788, {"zero_shot": {"train": 5_864, "test": 5_924}, "closed_set": {"train": 5_994, "test": 5_794}}
    ),
    manifests={
        "zero_shot": "486229dc9ff255c987c82041dd9210c23066f7b197edf5a1f5f0def66b4cbcc5",
        "closed_set": "dcbc9460b188275b587f2bf459578b9c0b0282afbe23f6b486afdc75f94ceeca",
    },
)
