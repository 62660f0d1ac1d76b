"""The data sets by name. To add one: write its file, then add its line here and a card under ``datasets/``."""

from __future__ import annotations

from pathlib import Path

from retrieval_bench.data import cub, emoji, folder, synthetic
from retrieval_bench.data.dataset import Dataset
from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.splits import Split, make_split
from retrieval_bench.errors import UserError, unknown

DATASETS: dict[str, Dataset] = {
    "cub": cub.CUB,
    "emoji": emoji.EMOJI,
    "emoji_mini": emoji.EMOJI_MINI,
    "folder": folder.FOLDER,
    "synthetic": synthetic.SYNTHETIC,
}


def open_dataset(name: str, root: Path | None, protocol: str = "zero_shot") -> tuple[ImageTable, Split]:
    """Opens a data set, fetching it first if `root` is None, and splits it.

    Args:
        name: a key of :data:`DATASETS`.
        root: extracted folder or archive; None downloads into the cache.
        protocol: name of a split protocol (``retrieval_bench.data.splits``).

    Raises:
        UserError: unknown name, missing or damaged files, or counts that differ from the published ones.
    """
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    root = root.expanduser() if root else None
    if root is not None and not root.exists():
        raise UserError(f"{root}: no such folder or archive (--data-root)")
    dataset = DATASETS[name]
    table = dataset.open(root)
    dataset.check(table)
    return table, make_split(protocol, table.labels, dataset.train_classes(table))
