"""Reading image files: one at a time, or many in threads."""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from retrieval_bench.errors import UserError, first_line
from retrieval_bench.progress import track

DECODING_ERRORS = (UnidentifiedImageError, OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError)

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_image(path: Path) -> Image.Image:
    """An RGB image, set upright as its EXIF data says, with transparency laid over white; whatever the file's mode. Of
    several frames or pages it is the first.

    Values of more than 8 bits are scaled: see :func:`_to_bytes`. A :class:`UserError` names a file that is missing,
    damaged or no image.
    """
    with _opened(path) as image:
        has_exif = "exif" in image.info  # in the head: Pillow would also turn an image by its XMP data
        image.load()
        if has_exif:
            with suppress(*DECODING_ERRORS, struct.error, KeyError):  # damaged EXIF data says nothing
                ImageOps.exif_transpose(image, in_place=True)
        if image.mode[0] in "IF":
            sixteen_bits = image.mode != "F" and (image.mode != "I" or image.format in ("PPM", "PNG"))
            values = np.asarray(image)
            grey = _to_bytes(values, sixteen_bits)
            clear = image.info.get("transparency") if image.format == "PNG" else None
            return Image.fromarray(grey if clear is None else np.where(values == clear, np.uint8(255), grey)).convert(
                "RGB"
            )
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            layer = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
        return image.convert("RGB")


def _to_bytes(values: np.ndarray, sixteen_bits: bool) -> np.ndarray:
    """uint8 (H, W): grey values of 16 or 32 bits, whole or real numbers, scaled.

    Whole numbers that are all in 0..255 stay as they are; others of `sixteen_bits` are divided by 257. Real numbers in
    0..1, of which the largest exceeds 1/16, are multiplied by 255. In all other images the least value becomes 0 and
    the largest 255. Raises ValueError for values that are infinite or no numbers.
    """
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are infinite or NaN")
    whole, low, high = values.dtype.kind in "iu", float(values.min()), float(values.max())
    if whole and low >= 0 and high <= 255:
        return values.astype(np.uint8)
    if sixteen_bits:
        return (values / 257).astype(np.uint8)
    if not whole and low >= 0 and 1 / 16 < high <= 1:
        low, high = 0.0, 1.0
    return ((values.astype(np.float64) - low) * (255 / ((high - low) or 1))).round().astype(np.uint8)


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels from the file's head alone, not turned by EXIF data; raises as :func:`read_image`."""
    with _opened(path) as image:
        return image.height, image.width


def read_kind(path: Path) -> tuple[str, int]:
    """Pillow's mode of the pixels in the file, and how many frames or pages it has; raises as :func:`read_image`."""
    with _opened(path) as image:
        frames = 1
        if image.format != "MPO":  # whose further frames are smaller or other versions of the photograph
            with suppress(Exception):  # a damaged later frame
                frames = getattr(image, "n_frames", 1)
        return image.mode, frames


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            if 0 in image.size:
                raise ValueError("it has no pixels")
            yield image
    except FileNotFoundError:
        raise UserError(f"{path}: image is missing; restore it or fetch the data set again") from None
    except UnicodeEncodeError:  # the locale lacks the file's name, so no image can be read there
        raise
    except DECODING_ERRORS as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else first_line(error)
        raise UserError(f"{path}: image cannot be decoded ({reason}); restore it or remove it") from None


def scaled(height: int, width: int, side: int) -> tuple[int, int]:
    """The size whose shorter side is `side`, with the longer side rounded down (as torchvision's ``Resize`` does)."""
    return (side, int(side * width / height)) if height <= width else (int(side * height / width), side)


def shrunk_size(height: int, width: int, side: int) -> tuple[int, int]:
    """The size of an image scaled down to the shorter side `side`; never up, and not at all if `side` is 0."""
    return scaled(height, width, side) if 0 < side < min(height, width) else (height, width)


def shrink(image: Image.Image, side: int) -> Image.Image:
    """The image at its :func:`shrunk_size`; by Lanczos' filter, which blurs least what is resized once more."""
    height, width = shrunk_size(image.height, image.width, side)
    return image if (width, height) == image.size else image.resize((width, height), Image.Resampling.LANCZOS)


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], what: str, total: int
) -> Generator[Result, None, None]:
    """Yields ``work(item)`` of each of `total` items in order, with a bar; after an exception no further item is begun.

    As many threads as there are cores work (PIL and file reads release Python's lock), a few items ahead.
    """
    threads = os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads)

    def results() -> Iterator[Result]:
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) >= 4 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    try:
        yield from track(results(), what, total)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
