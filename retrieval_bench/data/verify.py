"""Decoding every image of a data set: do all decode, how large are they, and which are copies of others?"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from retrieval_bench.data.reading import in_threads, read_image
from retrieval_bench.data.splits import Split
from retrieval_bench.data.table import ImageTable
from retrieval_bench.errors import UserError

SHOWN = 5
"""Groups of copies that are named in full."""


def verify(table: ImageTable, split: Split) -> list[str]:
    """Decodes every image; returns lines on sizes and equal pixels, or refuses with how many do not decode."""
    sizes: list[tuple[int, int]] = []
    errors: list[str] = []
    copies: dict[bytes, list[int]] = {}
    files = [table.root / path for path in table.paths]
    for row, result in enumerate(in_threads(_decode, files, "decoding", len(table))):
        if isinstance(result, str):
            errors.append(result)
        else:
            sizes.append(result[:2])
            copies.setdefault(result[2], []).append(row)
    if errors:
        count = f"{len(errors):,} of {len(table):,} images cannot be read; first: " if len(errors) > 1 else ""
        raise UserError(count + errors[0])
    groups = [rows for rows in copies.values() if len(rows) > 1]
    train, test = set(split.train.tolist()), set(split.test.tolist())
    across = [rows for rows in groups if train.intersection(rows) and test.intersection(rows)]
    mixed = [rows for rows in groups if len(np.unique(table.labels[rows])) > 1]
    named = [*across, *(rows for rows in mixed if rows not in across)][:SHOWN]
    summary = "no image is a copy of another"
    if groups:
        summary = (
            f"{sum(map(len, groups)):,} images with equal pixels in {len(groups):,} group(s): "
            f"{len(across):,} across training and test, {len(mixed):,} across classes"
        )
    low, middle, high = (np.percentile(sizes, share, axis=0).astype(int) for share in (0, 50, 100))
    return [
        f"all {len(table):,} images decode",
        f"width {low[0]} to {high[0]}, median {middle[0]}; height {low[1]} to {high[1]}, median {middle[1]}; "
        f"shorter side at least {np.min(sizes)} pixels",
        summary,
        *("  equal: " + ", ".join(table.paths[row] for row in rows) for rows in named),
    ]


def _decode(path: Path) -> tuple[int, int, bytes] | str:
    """Width, height and a digest of the pixels; or what is wrong."""
    try:
        image = read_image(path)
    except UserError as error:
        return str(error)
    pixels = hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16)
    return image.width, image.height, pixels.digest()
