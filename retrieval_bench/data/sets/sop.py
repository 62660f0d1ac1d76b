"""Stanford Online Products (Song, Xiang, Jegelka and Savarese, CVPR 2016): 120,053 photographs of 22,634 products on offer.

Zero-shot split: products 1-11,318 train (59,551 images), 11,319-22,634 test (60,502). There is no closed-set split.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retrieval_bench.data.dataset import Counts, Dataset
from retrieval_bench.data.download import Archive
from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.lists import read_columns, whole_numbers
from retrieval_bench.data.places import Places
from retrieval_bench.errors import UserError

ARCHIVE = Archive(
    name="Stanford_Online_Products.zip",
    md5="7f73d41a2f44250d4779881525aea32e",
    urls=(
        "http://ftp.cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip",
        "https://drive.usercontent.google.com/download?id=1TclrpQOF_ullUP99wk_gjGN8pKvtErG8&export=download&authuser=0&confirm=t",
    ),
    by_hand="from https://cvgl.stanford.edu/projects/lifted_struct/",
)


def open_sop(root: Path | None) -> ImageTable:
    """Opens the official layout: the zip, ``Stanford_Online_Products``, or a folder that holds either; None downloads the zip."""
    folder = (
        Places(root, (ARCHIVE,), "Stanford Online Products")
        .find("Ebay_train.txt", "Stanford_Online_Products/Ebay_train.txt")
        .parent
    )
    parts = [read_columns(folder / f"Ebay_{side}.txt", columns=4, skip=1) for side in ("train", "test")]
    trained, tested = (whole_numbers(folder, [row[1] for row in part]) for part in parts)
    labels = np.array(trained + tested, dtype=np.int64) - 1
    names: dict[int, str] = {}
    for label, (*_, path) in zip(labels.tolist(), parts[0] + parts[1], strict=True):
        names.setdefault(label, f"{path.split('/')[0].removesuffix('_final')}_{label + 1}")
    if not trained or set(names) != set(range(len(names))) or max(trained) >= min(tested, default=0):
        raise UserError(
            f"{folder}: class numbers of Ebay_train.txt and Ebay_test.txt are not the official ones; fetch the data set again"
        )
    paths = tuple(row[3] for part in parts for row in part)
    return ImageTable(folder, paths, labels, tuple(names[label] for label in range(len(names))), max(trained))


SOP = Dataset(
    about="Stanford Online Products, 120,053 photographs of 22,634 products; downloaded (about 3 GB) or read from --data-root",
    open=open_sop,
    archives=(ARCHIVE,),
    counts=Counts(classes=22_634, images=120_053, splits={"zero_shot": {"train": 59_551, "test": 60_502}}),
    ks=(1, 10, 100, 1000),
)
