"""Stanford Online Products (Song et al., CVPR 2016): 120,053 photographs of 22,634 products on offer.

Zero-shot split: products 1-11,318 train (59,551 images), 11,319-22,634 test (60,502). There is no closed-set split.
"""

from __future__ import annotations

from pathlib import Path

from retrieval_bench.data.archive import find_files, read_columns
from retrieval_bench.data.dataset import Counts, Dataset
from retrieval_bench.data.download import Archive
from retrieval_bench.data.table import ImageTable, numbered_table
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
    """Opens the zip, the folder ``Stanford_Online_Products``, or a folder that holds either; None downloads the zip."""
    names = ("Ebay_train.txt", "Stanford_Online_Products/Ebay_train.txt")
    (train_list,) = find_files(root, (ARCHIVE,), "Stanford Online Products", names)
    folder = train_list.parent
    train, test = (read_columns(folder / f"Ebay_{side}.txt", int, int, int, str, skip=1) for side in ("train", "test"))
    rows = train + test
    classes: dict[int, str] = {}
    for _, product, _, path in rows:
        classes.setdefault(product, f"{path.split('/')[0].removesuffix('_final')}_{product}")
    train_classes = max((product for _, product, *_ in train), default=0)
    first_test = min((product for _, product, *_ in test), default=0)
    if not train or sorted(classes) != list(range(1, len(classes) + 1)) or train_classes >= first_test:
        raise UserError(f"{folder}: class numbers of Ebay_*.txt are not the official ones; fetch the data set again")
    numbers, paths = [row[1] for row in rows], [row[3] for row in rows]
    return numbered_table(folder, paths, numbers, [classes[number] for number in sorted(classes)], train_classes)


SOP = Dataset(
    about="Stanford Online Products, 120,053 photographs of 22,634 products; downloaded (3 GB), or --data-root",
    title="Stanford Online Products",
    classes_are="products",
    open=open_sop,
    archives=(ARCHIVE,),
    counts=Counts(classes=22_634, images=120_053, splits={"zero_shot": {"train": 59_551, "test": 60_502}}),
    ks=(1, 10, 100, 1000),
)
