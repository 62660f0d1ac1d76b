"""The decode-once cache: all pixels of a data set in one memory-mapped file, so that an epoch decodes nothing."""

from __future__ import annotations

import hashlib
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from retrieval_bench.data.reading import in_threads, read_image, read_size, shrink, shrunk_size
from retrieval_bench.data.table import ImageTable
from retrieval_bench.errors import UserError
from retrieval_bench.files import cache_dir, check_space, gigabytes, made_once
from retrieval_bench.progress import logger

VERSION = 3
"""Counts changes of the contents, so that an older cache is never read as a newer one."""

PIXELS, SIZES = "pixels.bin", "sizes.npy"


@dataclass(frozen=True)
class DecodeCache:
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


def open_decode_cache(table: ImageTable, side: int, limit_gb: float) -> DecodeCache:
    """Opens the cache of a table, building it first (in threads, with a bar) if there is none.

    A cache belongs to the names and contents (:attr:`ImageTable.contents`) of all image files and to `side`, the
    shorter side in pixels that images are scaled down to (0: not at all). None is built if all caches together would
    take more than `limit_gb` 10^9 bytes, or more than the disk has.
    """
    sha = hashlib.sha256(f"{VERSION} {side} {table.root.resolve()}\n".encode())
    for path, content in zip(table.paths, table.contents, strict=True):
        sha.update(f"{path},{content}\n".encode())
    folder = cache_dir() / "decoded" / f"{table.root.name[:80]}-{side or 'full'}-{sha.hexdigest()[:16]}"
    made_once(folder, f"decoding the images of {table.root}", partial(_build, table, side, limit_gb))
    sizes = np.load(folder / SIZES)
    lengths = 3 * sizes.prod(axis=1)
    pixels = np.memmap(folder / PIXELS, dtype=np.uint8, mode="c")  # copy on write: nobody changes the file by mistake
    return DecodeCache(pixels, np.cumsum(lengths) - lengths, sizes)


def _build(table: ImageTable, side: int, limit_gb: float, folder: Path) -> None:
    files = [table.root / path for path in table.paths]
    heads = in_threads(read_size, files, "reading sizes", len(files))
    total = sum(3 * height * width for height, width in (shrunk_size(*head, side) for head in heads))
    caches = folder.parent
    others = sum(path.stat().st_size for path in caches.glob(f"[!.]*/{PIXELS}"))
    if not total + others <= limit_gb * 1e9:
        beside = f", beside {gigabytes(others)} of other caches in {caches}," if others else ""
        smaller = f"--stored below {side}" if side else "--stored 256"
        raise UserError(
            f"the decoded images would take {gigabytes(total)}{beside} and --cache-limit-gb is {limit_gb:g}: "
            f"raise it, scale the images down with {smaller}, {'delete other caches, ' if others else ''}or read with "
            "--reader pil"
        )
    check_space(caches, total, "the cache of decoded images")
    logger.info(f"decoding {len(files):,} images once into {caches} ({gigabytes(total)})")
    sizes = []
    with (
        (folder / PIXELS).open("wb") as stream,
        closing(in_threads(lambda file: shrink(read_image(file), side), files, "decoding", len(files))) as images,
    ):
        for image in images:
            stream.write(image.tobytes())
            sizes.append((image.height, image.width))
    np.save(folder / SIZES, np.array(sizes, dtype=np.int64).reshape(-1, 2))
    table.check_unchanged()
