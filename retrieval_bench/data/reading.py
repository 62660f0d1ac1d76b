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

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"}
DECODING_ERRORS = (UnidentifiedImageError, OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError)

Item = TypeVar("Item")
Result = TypeVar("Result")


def is_image(path: Path, folder: Path) -> bool:
    """Whether `path`, below `folder`, is an image by its ending, and not hidden there."""
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in SUFFIXES and not hidden and path.is_file()


def read_image(path: Path) -> Image.Image:
    """An RGB image, set upright as its EXIF data says, with transparency laid over white; whatever the file's mode.

    A :class:`UserError` names a file that is missing, damaged or no image.
    """
    with _opened(path) as image:
        has_exif = "exif" in image.info  # in the head: Pillow would also turn an image by its XMP data
        image.load()
        if has_exif:
            with suppress(*DECODING_ERRORS, struct.error, KeyError):  # damaged EXIF data says nothing
                ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I;16") or image.mode == "I":  # PIL clips 16-bit values to 255; scale them instead
            values = (np.asarray(image, dtype=np.float64) / 257).clip(0, 255)
            return Image.fromarray(values.astype(np.uint8)).convert("RGB")
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            layer = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
        return image.convert("RGB")


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels from the file's head alone, not turned by EXIF data; raises as :func:`read_image`."""
    with _opened(path) as image:
        return image.height, image.width


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise UserError(f"{path}: image is missing; restore it or fetch the data set again") from None
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
