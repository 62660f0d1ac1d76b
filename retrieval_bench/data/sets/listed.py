"""Data sets of SpotTune's table that are passed on as folders or lists: WikiArt (Saleh and Elgammal 2015) and Sketches (Eitz et al. 2012).

Both are laid out as ``train/<class>/*`` and ``test/<class>/*`` below ``--data-root``, or named by a CSV or Parquet file with the columns
``path,label,split``. The counts are those of Guo et al., SpotTune (CVPR 2019); another split has other counts and is refused.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from retrieval_bench.data.dataset import Counts, Dataset
from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.sets.folder import open_folder
from retrieval_bench.data.sets.table import open_listed
from retrieval_bench.errors import UserError


def open_sides(name: str, root: Path | None) -> ImageTable:
    """Opens the folder or list at `root`.

    Raises:
        UserError: no root, or nothing that says which images train and which test.
    """
    if root is None:
        raise UserError(
            f"data set '{name}' has no download: give --data-root FOLDER with train/<class> and test/<class>, "
            "or a CSV with path,label,split"
        )
    table = open_listed(root) if root.is_file() else open_folder(root)
    if table.sides is None:
        raise UserError(
            f"{root}: nothing says which images train: make folders train/<class> and test/<class>, or a CSV with a column split"
        )
    return table


def _listed(name: str, about: str, train: int, test: int, classes: int) -> Dataset:
    splits = {"closed_set": {"train": train, "test": test}}
    counts = Counts(classes=classes, images=train + test, splits=splits)
    return Dataset(about=f"{about} (--data-root FOLDER or CSV)", open=partial(open_sides, name), counts=counts)


WIKIART = _listed("wikiart", "WikiArt: paintings by 195 artists", 42_129, 10_628, 195)
SKETCHES = _listed("sketches", "Sketches: 250 kinds of drawn objects", 16_000, 4_000, 250)
