"""Looking at every image of a data set: does it decode, how large is it, and is it a copy of another?"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np

from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.parallel import in_threads
from retrieval_bench.data.reading import read_image
from retrieval_bench.data.splits import Split
from retrieval_bench.errors import UserError

SHOWN = 5
"""Copies that are named in full."""


def verify(table: ImageTable, split: Split) -> list[str]:
    """Decodes every image; returns the findings, a line each: sizes, and images with equal pixels (which side, which class).

    Raises:
        UserError: images that cannot be decoded: how many, and the first with its reason.
    """
    seen = list(in_threads(_look, [table.root / path for path in table.paths], "decoding", len(table)))
    broken = [found for found in seen if isinstance(found, str)]
    if broken:
        raise UserError(
            f"{len(broken):,} of {len(seen):,} images cannot be read; first: {broken[0]}"
            if len(broken) > 1
            else broken[0]
        )
    looks = [found for found in seen if not isinstance(found, str)]
    sizes = np.array([(width, height) for width, height, _ in looks])
    return [
        f"all {len(looks):,} images decode",
        _size_line(sizes),
        *_copies(table, split, [pixels for *_, pixels in looks]),
    ]


def _look(path: Path) -> tuple[int, int, bytes] | str:
    """Width, height and a digest of the pixels; or what is wrong."""
    try:
        image = read_image(path)
    except UserError as error:
        return str(error)
    return (
        image.width,
        image.height,
        hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).digest(),
    )


def _size_line(sizes: np.ndarray) -> str:
    low, middle, high = (np.percentile(sizes, share, axis=0).astype(int) for share in (0, 50, 100))
    shorter = sizes.min(axis=1)
    return (
        f"width {low[0]} to {high[0]}, median {middle[0]}; height {low[1]} to {high[1]}, median {middle[1]}; "
        f"shorter side at least {shorter.min()} pixels"
    )


def _copies(table: ImageTable, split: Split, pixels: list[bytes]) -> list[str]:
    groups: dict[bytes, list[int]] = defaultdict(list)
    for row, key in enumerate(pixels):
        groups[key].append(row)
    copies = [rows for rows in groups.values() if len(rows) > 1]
    if not copies:
        return ["no image is a copy of another"]
    train, test = set(split.train.tolist()), set(split.test.tolist())
    across = [rows for rows in copies if train.intersection(rows) and test.intersection(rows)]
    mixed = [rows for rows in copies if len({int(table.labels[row]) for row in rows}) > 1]
    lines = [
        f"{sum(map(len, copies)):,} images with equal pixels in {len(copies):,} group(s): "
        f"{len(across):,} across training and test, {len(mixed):,} across classes"
    ]
    telling = [*across, *(rows for rows in mixed if rows not in across)]
    return lines + ["  equal: " + ", ".join(table.paths[row] for row in rows) for rows in telling[:SHOWN]]
