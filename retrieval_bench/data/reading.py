"""Decoding one image file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from retrieval_bench.errors import UserError, first_line

DECODING_ERRORS = (UnidentifiedImageError, OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError)


def read_image(path: Path) -> Image.Image:
    """An RGB image: greyscale, palette, CMYK and 16-bit files are converted, transparency is laid over white.

    Raises:
        UserError: the file is missing, damaged or no image; the line names it.
    """
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode.startswith("I;16") or image.mode == "I":  # PIL clips 16-bit values to 255; scale them instead
                return Image.fromarray((np.asarray(image, dtype=np.float64) / 257).clip(0, 255).astype(np.uint8)).convert("RGB")
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                layer = image.convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
            return image.convert("RGB")
    except FileNotFoundError:
        raise UserError(f"{path}: image is missing; restore it or fetch the data set again") from None
    except DECODING_ERRORS as error:
        raise _undecodable(path, error) from None


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels, from the file's head alone; raises :class:`UserError` as :func:`read_image` does."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except FileNotFoundError:
        raise UserError(f"{path}: image is missing; restore it or fetch the data set again") from None
    except DECODING_ERRORS as error:
        raise _undecodable(path, error) from None


def _undecodable(path: Path, error: Exception) -> UserError:
    said = "not an image" if isinstance(error, UnidentifiedImageError) else first_line(error)
    return UserError(f"{path}: image cannot be decoded ({said}); restore it or remove it")
