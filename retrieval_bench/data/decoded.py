"""The decode-once cache: all pixels of a data set in one memory-mapped file, so that an epoch reads no image file and decodes nothing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.parallel import in_threads
from retrieval_bench.data.reading import read_image, read_size
from retrieval_bench.data.transforms import shrink, stored_size
from retrieval_bench.errors import UserError
from retrieval_bench.files import cache_dir, check_space, gigabytes, locked, whole_folder
from retrieval_bench.progress import logger

VERSION = 2
"""Counts changes of what is stored, so that an older cache is never read as a newer one."""

PIXELS, SIZES = "pixels.bin", "sizes.npy"


@dataclass(frozen=True)
class Decoded:
    """The decoded images of a table, by row.

    Attributes:
        pixels: uint8 (bytes,), memory-mapped; image after image, row by row, RGB.
        starts: int64 (N,), where each image begins.
        sizes: int64 (N, 2), height and width of each.
    """

    pixels: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: int) -> np.ndarray:
        """uint8 (H, W, 3): the pixels of an image, not copied."""
        start, (height, width) = self.starts[row], self.sizes[row]
        return self.pixels[start : start + 3 * height * width].reshape(height, width, 3)


def open_decoded(table: ImageTable, stored: int, limit_gb: float) -> Decoded:
    """Opens the cache of a table, building it first (in threads, with a bar) if there is none.

    A cache belongs to the names, sizes and times of change of all image files and to `stored`; it appears under its name only when it
    is complete. A second process waits for the first.

    Args:
        table: the images.
        stored: shorter side that images are scaled down to, pixels; 0 keeps them as they are.
        limit_gb: room that all caches together may take, 10^9 bytes.

    Raises:
        UserError: an image that cannot be decoded, a cache larger than the limit or the disk, or a folder that cannot be written.
    """
    folder = cache_dir() / "decoded" / f"{table.root.name}-{stored or 'full'}-{_key(table, stored)}"
    if not folder.is_dir():
        with locked(folder, f"decoding the images of {table.root}"):
            if not folder.is_dir():
                _build(table, stored, limit_gb, folder)
    sizes = np.load(folder / SIZES)
    pixels = np.memmap(folder / PIXELS, dtype=np.uint8, mode="c")  # copy on write: nobody changes the file by mistake
    return Decoded(pixels, _starts(sizes), sizes)


def _key(table: ImageTable, stored: int) -> str:
    sha = hashlib.sha256(f"{VERSION} {stored} {table.root.resolve()}\n".encode())
    for path, (size, changed) in zip(table.paths, table.files, strict=True):
        sha.update(f"{path},{size},{changed}\n".encode())
    return sha.hexdigest()[:16]


def _starts(sizes: np.ndarray) -> np.ndarray:
    lengths = 3 * sizes.prod(axis=1)
    return np.cumsum(lengths) - lengths


def _build(table: ImageTable, stored: int, limit_gb: float, folder: Path) -> None:
    files = [table.root / path for path in table.paths]
    found = in_threads(read_size, files, "reading sizes", len(files))
    sizes = np.array([stored_size(height, width, stored) for height, width in found], dtype=np.int64).reshape(-1, 2)
    starts, total = _starts(sizes), int(3 * sizes.prod(axis=1).sum())
    _check_limit(total, limit_gb, folder.parent, stored)
    logger.info(f"decoding {len(files):,} images once into {folder} ({gigabytes(total)})")
    with whole_folder(folder) as temporary:
        pixels: Any = np.memmap(temporary / PIXELS, dtype=np.uint8, mode="w+", shape=(total,))

        def decode(row: int) -> None:
            image = np.asarray(shrink(read_image(files[row]), stored))
            if image.shape[:2] != tuple(sizes[row]):
                raise UserError(f"{files[row]}: its head says another size than its pixels; restore it or remove it")
            pixels[starts[row] : starts[row] + image.size] = image.reshape(-1)

        for _ in in_threads(decode, range(len(files)), "decoding", len(files)):
            pass
        pixels.flush()
        np.save(temporary / SIZES, sizes)


def _check_limit(needed: int, limit_gb: float, folder: Path, stored: int) -> None:
    """Raises :class:`UserError` if a cache of `needed` bytes would not fit under the limit or on the disk."""
    others = sum(path.stat().st_size for path in folder.glob(f"[!.]*/{PIXELS}"))
    if not needed + others <= limit_gb * 1e9:
        beside = f", beside {gigabytes(others)} of other caches in {folder}," if others else ""
        smaller = f"--stored below {stored}" if stored else "--stored 256"
        raise UserError(
            f"the decoded images would take {gigabytes(needed)}{beside} and --cache-limit-gb is {limit_gb:g}: "
            f"raise it, scale the images down with {smaller}, {'delete other caches, ' if others else ''}or read with --reader pil"
        )
    check_space(folder, needed, "the cache of decoded images")
