"""Contact sheets: classes of both sides of a split; images beside those that a search gave for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from retrieval_bench.data.reading import read_image
from retrieval_bench.data.splits import Split
from retrieval_bench.data.table import ImageTable
from retrieval_bench.files import atomic_path

THUMBNAIL, GAP, CAPTION, HEADING = 96, 4, 20, 30
INK, GREY = (20, 20, 20), (110, 110, 110)


class Tile(NamedTuple):
    """An image file and the two lines of text above it."""

    path: Path
    first: str
    second: str = ""


def draw_sheet(table: ImageTable, split: Split, title: str, classes: int = 8, images: int = 6) -> Image.Image:
    """A row of images per class: up to `classes` evenly spaced classes of each side, the first `images` of each.

    Training classes are on the left, test classes on the right; in a closed set the same classes are on both.
    """
    sides = [("train", split.train), ("test", split.test)]
    labels = []
    for _, rows in sides:  # evenly spaced, the first and the last among them
        values = np.unique(table.labels[rows])
        spaced = np.linspace(0, len(values) - 1, min(classes, len(values))).round().astype(int)
        labels.append(values[np.unique(spaced)])
    width, height = images * (THUMBNAIL + GAP) + 3 * GAP, THUMBNAIL + CAPTION + GAP
    sheet = Image.new("RGB", (2 * width + GAP, 2 * HEADING + max(map(len, labels)) * height + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((2 * GAP, GAP + 2), title, fill=INK, font=ImageFont.load_default(18))
    for column, (side, rows) in enumerate(sides):
        left = column * (width + GAP) + 2 * GAP
        heading = f"{side}: {len(rows):,} images of {len(np.unique(table.labels[rows])):,} classes"
        _write(pen, (left, HEADING + 4), heading, width, 15, GREY)
        for line, label in enumerate(labels[column]):
            top = 2 * HEADING + line * height
            _write(pen, (left, top), table.class_names[label], width, 12, INK)
            for number, row in enumerate(rows[table.labels[rows] == label][:images]):
                thumbnail = ImageOps.fit(read_image(table.root / table.paths[row]), (THUMBNAIL, THUMBNAIL))
                sheet.paste(thumbnail, (left + number * (THUMBNAIL + GAP), top + CAPTION))
    return sheet


def draw_rows(rows: Sequence[Sequence[Tile]]) -> Image.Image:
    """Rows of images, whole ones (not cropped to squares); the first of each row stands apart."""
    width, height, apart = THUMBNAIL + GAP, THUMBNAIL + 2 * CAPTION, 4 * GAP
    sheet = Image.new("RGB", (max(map(len, rows)) * width + apart + 3 * GAP, len(rows) * height + 2 * GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for line, row in enumerate(rows):
        for column, tile in enumerate(row):
            left, top = 2 * GAP + column * width + (apart if column else 0), GAP + line * height
            _write(pen, (left, top), tile.first, width + 3 * GAP, 12, INK)
            _write(pen, (left, top + CAPTION - GAP), tile.second, width + 3 * GAP, 12, GREY)
            thumbnail = ImageOps.pad(read_image(tile.path), (THUMBNAIL, THUMBNAIL), color="white")
            sheet.paste(thumbnail, (left, top + 2 * CAPTION - 2 * GAP))
    return sheet


def write_sheet(sheet: Image.Image, path: Path) -> None:
    """Writes the sheet as PNG, atomically."""
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG", optimize=True)


def _write(
    pen: ImageDraw.ImageDraw, position: tuple[int, int], text: str, width: int, size: int, colour: tuple[int, int, int]
) -> None:
    """Writes a line of text, shortened to `width` pixels."""
    font = ImageFont.load_default(size)
    while font.getlength(text) > width - 4 * GAP:
        text = text.rstrip("…")[:-1] + "…"
    pen.text(position, text, fill=colour, font=font)
