"""In-Shop Clothes Retrieval of DeepFashion (Liu et al., CVPR 2016): 52,712 photographs of 7,982 clothing items.

Zero-shot split: 3,997 items train (25,882 images); 14,218 images of the others are queries and 12,612 the gallery.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retrieval_bench.data.archive import find_files, read_columns
from retrieval_bench.data.dataset import Counts, Dataset
from retrieval_bench.data.download import Archive
from retrieval_bench.data.table import ImageTable, named_table
from retrieval_bench.errors import UserError

BY_HAND = "(In-shop Clothes Retrieval Benchmark, linked from https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html)"
ARCHIVES = (Archive("list_eval_partition.txt", by_hand=BY_HAND), Archive("img.zip", by_hand=BY_HAND))
TITLE = "In-shop Clothes Retrieval Benchmark"
BELOW = ("Img", TITLE, f"{TITLE}/Img")
LISTS = ("Eval/list_eval_partition.txt", "list_eval_partition.txt", f"{TITLE}/Eval/list_eval_partition.txt")


def open_inshop(root: Path | None) -> ImageTable:
    """Opens the official layout (``Eval``, ``Img/img``), or list and ``img`` (or ``img.zip``) in one folder."""
    folders = ("img", *(f"{folder}/img" for folder in BELOW))
    lists, images = find_files(root, ARCHIVES, "In-Shop", LISTS, folders, below=BELOW)
    rows = read_columns(lists, str, str, str, skip=2)
    unknown = sorted({side for *_, side in rows} - {"train", "query", "gallery"})
    if unknown:
        raise UserError(f"{lists}: not the official file (status '{unknown[0]}'); fetch the data set again")
    paths, items, split = ([row[column] for row in rows] for column in range(3))
    table = named_table(images.parent, paths, items, split)
    queries, gallery = (table.labels[np.array(split) == side] for side in ("query", "gallery"))
    if len(np.setdiff1d(queries, gallery)):
        raise UserError(f"{lists}: an item has queries but no gallery image; fetch the data set again")
    return table


INSHOP = Dataset(
    about="In-Shop Clothes, 52,712 photographs of 7,982 items, queries apart; by hand (licence): --data-root",
    title="In-Shop Clothes",
    classes_are="items",
    open=open_inshop,
    archives=ARCHIVES,
    counts=Counts(7_982, 52_712, {"zero_shot": {"train": 25_882, "query": 14_218, "gallery": 12_612}}),
    ks=(1, 10, 20, 30, 40, 50),
)
