"""Contact sheets: what the classes of a data set look like on both sides of the split; images beside what they were found to be like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.reading import read_image
from retrieval_bench.data.splits import Split
from retrieval_bench.files import atomic_path

THUMBNAIL, GAP, CAPTION, HEADING = 96, 4, 20, 30
INK, GREY = (20, 20, 20), (110, 110, 110)


def draw_sheet(table: ImageTable, split: Split, title: str, classes: int = 8, images: int = 6) -> Image.Image:
    """A row of images per class: up to `classes` classes of each side, evenly spaced over all of them, the first `images` of each.

    Training classes are on the left, test classes on the right; in a closed set the same classes are on both.
    """
    columns = {"train": split.train, "test": split.test}
    chosen = {side: _spaced(np.unique(table.labels[rows]), classes) for side, rows in columns.items()}
    width, height = images * (THUMBNAIL + GAP) + 3 * GAP, THUMBNAIL + CAPTION + GAP
    longest = max(map(len, chosen.values()))
    sheet = Image.new("RGB", (2 * width + GAP, 2 * HEADING + longest * height + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((2 * GAP, GAP + 2), title, fill=INK, font=_font(18))
    for column, (side, rows) in enumerate(columns.items()):
        left = column * (width + GAP) + 2 * GAP
        total = len(np.unique(table.labels[rows]))
        pen.text(
            (left, HEADING + 4),
            _shortened(f"{side}: {len(rows):,} images of {total:,} classes", width, 15),
            fill=GREY,
            font=_font(15),
        )
        for place, label in enumerate(chosen[side]):
            top = 2 * HEADING + place * height
            pen.text((left, top), _shortened(table.class_names[label], width, 12), fill=INK, font=_font(12))
            for number, row in enumerate(rows[table.labels[rows] == label][:images]):
                thumbnail = ImageOps.fit(read_image(table.root / table.paths[row]), (THUMBNAIL, THUMBNAIL))
                sheet.paste(thumbnail, (left + number * (THUMBNAIL + GAP), top + CAPTION))
    return sheet


class Picture(NamedTuple):
    """An image file and the two lines of text above it."""

    path: Path
    first: str
    second: str = ""


def draw_rows(rows: Sequence[Sequence[Picture]]) -> Image.Image:
    """Rows of pictures, whole ones (not cut to squares); the first of each row stands apart."""
    width, height, apart = THUMBNAIL + GAP, THUMBNAIL + 2 * CAPTION, 4 * GAP
    sheet = Image.new("RGB", (max(map(len, rows)) * width + apart + 3 * GAP, len(rows) * height + 2 * GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for line, row in enumerate(rows):
        for place, picture in enumerate(row):
            left, top = 2 * GAP + place * width + (apart if place else 0), GAP + line * height
            for text, down, ink in ((picture.first, 0, INK), (picture.second, CAPTION - GAP, GREY)):
                pen.text((left, top + down), _shortened(text, width + 3 * GAP, 12), fill=ink, font=_font(12))
            sheet.paste(
                ImageOps.pad(read_image(picture.path), (THUMBNAIL, THUMBNAIL), color="white"),
                (left, top + 2 * CAPTION - 2 * GAP),
            )
    return sheet


def write_sheet(sheet: Image.Image, path: Path) -> None:
    """Writes the sheet as PNG, atomically."""
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG", optimize=True)


def _spaced(values: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the values, evenly spaced, the first and the last among them."""
    return values[np.unique(np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int))]


def _shortened(text: str, width: int, size: int) -> str:
    font = _font(size)
    while font.getlength(text) > width - 4 * GAP:
        text = text.rstrip("…")[:-1] + "…"
    return text


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
