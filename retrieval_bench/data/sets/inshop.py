"""In-Shop Clothes Retrieval of DeepFashion (Liu, Luo, Qiu, Wang and Tang, CVPR 2016): 52,712 photographs of 7,982 clothing items.

Zero-shot split: 3,997 items train (25,882 images); of the other 3,985 items 14,218 images are queries and 12,612 the gallery.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retrieval_bench.data.dataset import Counts, Dataset
from retrieval_bench.data.download import Archive
from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.lists import read_columns
from retrieval_bench.data.places import Places
from retrieval_bench.data.sets.folder import tabulate
from retrieval_bench.errors import UserError

BY_HAND = "(In-shop Clothes Retrieval Benchmark, linked from https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html)"
ARCHIVES = (Archive("list_eval_partition.txt", by_hand=BY_HAND), Archive("img.zip", by_hand=BY_HAND))
BELOW = ("", "Img/", "In-shop Clothes Retrieval Benchmark/", "In-shop Clothes Retrieval Benchmark/Img/")


def open_inshop(root: Path | None) -> ImageTable:
    """Opens the official layout (``Eval/list_eval_partition.txt``, ``Img/img``), or list and ``img`` (or ``img.zip``) in one folder."""
    places = Places(root, ARCHIVES, "In-Shop", BELOW[1:])
    lists = places.find(
        "Eval/list_eval_partition.txt", "list_eval_partition.txt", f"{BELOW[2]}Eval/list_eval_partition.txt"
    )
    images = places.find(*(f"{below}img" for below in BELOW))
    rows = read_columns(lists, columns=3, skip=2)
    strange = sorted({side for *_, side in rows} - {"train", "query", "gallery"})
    if strange:
        raise UserError(f"{lists}: not the official file (status '{strange[0]}'); fetch the data set again")
    table = tabulate(images.parent, [(path, item, side) for path, item, side in rows])
    queries, gallery = (table.labels[table.sides == side] for side in ("query", "gallery"))
    if len(np.setdiff1d(queries, gallery)):
        raise UserError(f"{lists}: an item has queries but no gallery image; fetch the data set again")
    return table


INSHOP = Dataset(
    about="In-Shop Clothes, 52,712 photographs of 7,982 items, with queries and gallery; fetched by hand (licence): --data-root",
    open=open_inshop,
    archives=ARCHIVES,
    counts=Counts(
        classes=7_982, images=52_712, splits={"zero_shot": {"train": 25_882, "query": 14_218, "gallery": 12_612}}
    ),
    ks=(1, 10, 20, 30, 40, 50),
)
