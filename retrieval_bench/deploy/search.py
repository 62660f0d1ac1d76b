"""The nearest images of a collection, as rows and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from retrieval_bench.data.sheet import Tile, draw_rows
from retrieval_bench.data.table import ImageTable
from retrieval_bench.deploy.collection import Collection
from retrieval_bench.errors import UserError


class Neighbour(NamedTuple):
    """An image of a collection: ``rank`` from 1, cosine ``similarity``, ``path`` and ``label`` as embedded."""

    rank: int
    similarity: float
    path: str
    label: str


def nearest(index: Any, collection: Collection, queries: np.ndarray, k: int) -> list[list[Neighbour]]:
    """The k nearest images of each query, float32 (Q, D) of length 1; fewer where the collection, or an approximate index, has no more."""
    similarities, rows = index.search(queries, min(k, len(collection.paths)))
    return [
        [
            Neighbour(rank, float(value), str(collection.paths[row]), str(collection.labels[row]))
            for rank, (value, row) in enumerate(zip(values, found, strict=True), start=1)
            if row >= 0
        ]
        for values, found in zip(similarities, rows, strict=True)
    ]


def table_of(files: Sequence[Path]) -> ImageTable:
    """Image files as a table, without classes; raises :class:`UserError` for one that is not there."""
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: no such image file")
    return ImageTable(Path(), tuple(str(path) for path in files), np.zeros(len(files), dtype=np.int64), ("",))


def draw_neighbours(queries: Sequence[Path], found: Sequence[Sequence[Neighbour]], folder: Path) -> Image.Image:
    """A row for each query: its image, then its neighbours with rank, similarity and label.

    Args:
        queries: image files.
        found: the neighbours of each.
        folder: which their paths are below.

    Raises:
        UserError: an image is not below `folder`, or cannot be decoded.
    """
    for neighbour in (neighbour for row in found for neighbour in row):
        if not (folder / neighbour.path).is_file():
            raise UserError(
                f"{folder / neighbour.path}: no such image; --folder FOLDER names the folder that was embedded"
            )
    rows = [
        [
            Tile(query, query.name),
            *(Tile(folder / n.path, f"{n.rank}  {n.similarity:.3f}", n.label or Path(n.path).name) for n in row),
        ]
        for query, row in zip(queries, found, strict=True)
    ]
    return draw_rows(rows)
