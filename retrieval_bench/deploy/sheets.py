"""Queries and their neighbours as a picture (PNG), and as one HTML page that holds its pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from retrieval_bench.data.reading import read_image
from retrieval_bench.data.sheet import Tile, draw_rows
from retrieval_bench.deploy.search import Neighbour
from retrieval_bench.errors import UserError

THUMBNAIL = 224
"""Longer side of a picture on the page, pixels: twice what it takes on most screens."""


def check_images(neighbours: Sequence[Sequence[Neighbour]], folder: Path) -> None:
    """Raises :class:`UserError` if the image of a neighbour is not below `folder`."""
    for near in (near for row in neighbours for near in row):
        if not (folder / near.path).is_file():
            raise UserError(f"{folder / near.path}: no such image; --folder FOLDER names the folder that was embedded")


def draw_neighbours(queries: Sequence[Path], neighbours: Sequence[Sequence[Neighbour]], folder: Path) -> Image.Image:
    """A row for each query: its image, then its neighbours with rank, similarity and label. Raises :class:`UserError`
    for an image that cannot be decoded."""
    return draw_rows(
        [
            [
                Tile(query, query.name),
                *(Tile(folder / n.path, f"{n.rank}  {n.similarity:.3f}", n.label or Path(n.path).name) for n in row),
            ]
            for query, row in zip(queries, neighbours, strict=True)
        ]
    )


def neighbours_page(
    queries: Sequence[Path], labels: Sequence[str], neighbours: Sequence[Sequence[Neighbour]], folder: Path, title: str
) -> str:
    """The same as a page of HTML, with nothing to load from elsewhere.

    Args:
        queries: image files.
        labels: of the queries; "" where it is not known. Neighbours of a query with a label are marked as right or
            wrong.
        neighbours: of each query.
        folder: of the neighbours' images.
        title: of the page.
    """

    @cache
    def picture(path: Path) -> str:
        image, stream = read_image(path), io.BytesIO()
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        image.save(stream, "JPEG", quality=80)
        return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    rows = list(zip(queries, labels, neighbours, strict=True))
    return environment.get_template("neighbours.html").render(rows=rows, folder=folder, title=title, picture=picture)
