"""The test's crop of an image, and the pixels of any crop by PIL; without torch, for places where an embedder is only
used."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from retrieval_bench.data.reading import scaled
from retrieval_bench.sections import DataConfig


class Crop(NamedTuple):
    """A box of an image that is resized, and a square of the resized box. All in pixels."""

    top: int
    left: int
    height: int
    width: int
    rows: int
    """height that the box is resized to"""
    columns: int
    """width that the box is resized to"""
    first_row: int
    """of the resized box that is in the square, like the next"""
    first_column: int
    mirrored: bool


def eval_crop(height: int, width: int, config: DataConfig) -> Crop:
    """Resize (shorter side, or both sides under ``squash``) to ``config.resize_to``, then centre crop."""
    side, square = config.resize_to, config.image_size
    rows, columns = (side, side) if config.preprocessing == "squash" else scaled(height, width, side)
    return Crop(0, 0, height, width, rows, columns, round((rows - square) / 2), round((columns - square) / 2), False)


def crop_pixels(image: Image.Image, crop: Crop, config: DataConfig) -> np.ndarray:
    """uint8 (3, S, S), in memory channels last: the crop of a PIL image; bilinear (bicubic under ``squash``, as in
    AutoLR), antialiased."""
    box = image.crop((crop.left, crop.top, crop.left + crop.width, crop.top + crop.height))
    if config.preprocessing == "squash":  # width first: libraries differ, and bicubic values are clamped in between
        box = box.resize((crop.columns, crop.height), Image.Resampling.BICUBIC)
        box = box.resize((crop.columns, crop.rows), Image.Resampling.BICUBIC)
    else:
        box = box.resize((crop.columns, crop.rows), Image.Resampling.BILINEAR)
    rows, columns = (slice(first, first + config.image_size) for first in (crop.first_row, crop.first_column))
    square = np.asarray(box)[rows, columns]
    return np.array(square[:, ::-1] if crop.mirrored else square).transpose(2, 0, 1)
