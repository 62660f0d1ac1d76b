"""Decoding one image file."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from retrieval_bench.errors import UserError, first_line

DECODING_ERRORS = (UnidentifiedImageError, OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError)


TURNS = dict(enumerate(map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), start=2))
"""What sets a picture upright, by its EXIF orientation."""


def read_image(path: Path) -> Image.Image:
    """An RGB image, upright as EXIF data says (as of phones' photographs): greyscale, palette, CMYK and 16-bit files are converted,
    transparency is laid over white.

    Raises:
        UserError: the file is missing, damaged or no image; the line names it.
    """
    try:
        with Image.open(path) as image:
            turn = TURNS.get(_orientation(image))
            image.load()
            upright = _rgb(image)
            return upright if turn is None else upright.transpose(turn)
    except FileNotFoundError:
        raise UserError(f"{path}: image is missing; restore it or fetch the data set again") from None
    except DECODING_ERRORS as error:
        raise _undecodable(path, error) from None


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) of the upright image in pixels, from the file's head alone; raises :class:`UserError` as :func:`read_image` does."""
    try:
        with Image.open(path) as image:
            lies = _orientation(image) >= 5
            return (image.width, image.height) if lies else (image.height, image.width)
    except FileNotFoundError:
        raise UserError(f"{path}: image is missing; restore it or fetch the data set again") from None
    except DECODING_ERRORS as error:
        raise _undecodable(path, error) from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":  # PIL clips 16-bit values to 255; scale them instead
        return Image.fromarray((np.asarray(image, dtype=np.float64) / 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation in the head of an opened file, 1 to 8; 1 (upright) where there is none or it cannot be read."""
    if "exif" not in image.info:  # asking for it would decode a PNG; a TIFF turns itself
        return 1
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (*DECODING_ERRORS, struct.error, KeyError):
        return 1
    return found if found in TURNS else 1


def _undecodable(path: Path, error: Exception) -> UserError:
    said = "not an image" if isinstance(error, UnidentifiedImageError) else first_line(error)
    return UserError(f"{path}: image cannot be decoded ({said}); restore it or remove it")
