"""WikiArt (Saleh and Elgammal 2015) and Sketches (Eitz et al. 2012), which are passed on as folders or lists.

Both are laid out as ``train/<class>/*`` and ``test/<class>/*`` below ``--data-root``, or named by a CSV or Parquet file
with the columns ``path,label,split``. The counts are those of Guo et al., SpotTune (CVPR 2019).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from retrieval_bench.data.dataset import Counts, Dataset
from retrieval_bench.data.sets.folder import open_folder
from retrieval_bench.data.sets.table import open_image_list
from retrieval_bench.data.table import ImageTable
from retrieval_bench.errors import UserError


def open_with_split(name: str, root: Path | None) -> ImageTable:
    """Opens the folder or list at `root`; raises :class:`UserError` if there is none, or none with a split."""
    layout = "FOLDER with train/<class> and test/<class>, or a CSV with path,label,split"
    if root is None:
        raise UserError(f"data set '{name}' has no download: give --data-root {layout}")
    table = open_image_list(root) if root.is_file() else open_folder(root)
    if table.official_split is None:
        raise UserError(f"{root}: nothing says which images train; give --data-root {layout}")
    return table


WIKIART = Dataset(
    about="WikiArt: paintings by 195 artists (--data-root FOLDER or CSV)",
    title="WikiArt",
    classes_are="artists",
    open=partial(open_with_split, "wikiart"),
    counts=Counts(195, 52_757, {"closed_set": {"train": 42_129, "test": 10_628}}),
)
SKETCHES = Dataset(
    about="Sketches: 250 kinds of drawn objects (--data-root FOLDER or CSV)",
    title="Sketches",
    open=partial(open_with_split, "sketches"),
    counts=Counts(250, 20_000, {"closed_set": {"train": 16_000, "test": 4_000}}),
)
