"""The data sets by name. To add one: write its file, then add its line here and a card under ``datasets/``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from retrieval_bench.data import pack
from retrieval_bench.data.dataset import Dataset
from retrieval_bench.data.sets import cars, cifar10, cub, emoji, flowers, folder, inshop, sop, synthetic, table, wikiart
from retrieval_bench.data.splits import Split, make_split
from retrieval_bench.data.table import ImageTable
from retrieval_bench.errors import UserError, unknown
from retrieval_bench.progress import logger

DATASETS: dict[str, Dataset] = {
    "cub": cub.CUB,
    "cars": cars.CARS,
    "sop": sop.SOP,
    "inshop": inshop.INSHOP,
    "flowers": flowers.FLOWERS,
    "cifar10": cifar10.CIFAR10,
    "wikiart": wikiart.WIKIART,
    "sketches": wikiart.SKETCHES,
    "emoji": emoji.EMOJI,
    "emoji_mini": emoji.EMOJI_MINI,
    "folder": folder.FOLDER,
    "table": table.TABLE,
    "synthetic": synthetic.SYNTHETIC,
}


def open_table(name: str, root: Path | None, strict: bool = True) -> ImageTable:
    """Opens a data set, checks its counts and files, and says what was passed over in its folder.

    `root` is an extracted folder, an archive, or a pack of the data set; without one it is downloaded into the cache.
    Unless `strict`, problems of images of one's own are left to the caller, in the table's listing.
    """
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    root = root.expanduser() if root else None
    if root is not None and not root.exists():
        raise UserError(f"{root}: no such folder or archive (--data-root)")
    dataset = DATASETS[name]
    images = pack.open_pack(root, name) if root is not None and (root / pack.INDEX).is_file() else dataset.open(root)
    images = replace(images, own=dataset.counts is None)
    dataset.check(images)
    if not strict:
        return images
    if images.listing and (passed_over := images.listing.passed_over()):
        logger.info(f"{images.root}: passed over {passed_over}")
    if images.listing and (problems := images.listing.problems):
        more = f" ({len(problems) - 1} more like this: `data verify` shows all)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
    _ = images.files  # every image is there and not empty
    return images


def open_dataset(
    name: str,
    root: Path | None,
    protocol: str = "zero_shot",
    fold: int = 0,
    folds: int = 4,
    classes: int = 0,
    train_per_class: int = 0,
) -> tuple[ImageTable, Split]:
    """:func:`open_table`, and its split (see :func:`retrieval_bench.data.splits.make_split`)."""
    images = open_table(name, root)
    return images, make_split(protocol, images, fold, folds, classes, train_per_class)
