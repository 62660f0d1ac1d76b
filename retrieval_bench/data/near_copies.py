"""Images that show the same picture in another size, encoding or format: what is kept of each, how two are compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

PAIRS = 1 << 22
"""Of images, whose hashes are compared at once."""
HASH_BITS, GREY_RMS, GREY_MOST, COLOUR_MOST = 8, 0.2, 0.5, 16.0
"""Largest differences of near copies, see :func:`near_copies`."""


@dataclass(frozen=True)
class ImageSummary:
    """What is kept of a decoded image: size, Pillow's mode in the file, frames, whether it shows one colour, a digest
    of its pixels, its difference hash, and small versions: uint8 (256,) in grey, (48,) in RGB."""

    size: tuple[int, int]
    mode: str
    frames: int
    plain: bool
    digest: bytes
    hash: int
    grey: np.ndarray
    colour: np.ndarray


def near_copies(summaries: Sequence[ImageSummary]) -> list[list[int]]:
    """Groups (numbers into `summaries`) of images that show the same picture in another size, encoding or format.

    In two such images at most 8 of the 64 bits of the difference hash differ (Krawetz, Kind of Like That, 2013: is a
    cell of 9 x 8 brighter than its left neighbour?). Their versions of 16 x 16 grey cells differ by at most 0.2 (root
    mean square) and 0.5 (largest), in units of the root mean square step between neighbouring cells: what scaling and
    compression do grows with the steps, while drawings of one kind differ much in few cells. No colour differs by more
    than 16 of 255 in 4 x 4 cells. On 1,311 photographs of CUB-200-2011, 9,659 drawings of emoji and 1,600 images of
    noise that finds at least 97 % of copies at half (noise: 3/4) or double size, as JPEG of quality 75 or 30, and as
    WebP of quality 50; it joins no two of the photographs or of the noise, and 8 of 47 million pairs of drawings.
    """
    if not summaries:
        return []
    hashes = np.array([summary.hash for summary in summaries], dtype=np.uint64)
    greys = np.array([summary.grey for summary in summaries], dtype=np.float32)
    colours = np.array([summary.colour for summary in summaries], dtype=np.float32)
    cells = greys.reshape(-1, 16, 16)
    steps = np.sqrt(((np.diff(cells, axis=1) ** 2).mean((1, 2)) + (np.diff(cells, axis=2) ** 2).mean((1, 2))) / 2)
    pairs = []
    block = max(1, PAIRS // len(summaries))
    for start in range(0, len(summaries), block):
        distances = np.bitwise_count(hashes[start : start + block, None] ^ hashes[None, start:])
        left, right = np.nonzero(distances <= HASH_BITS)
        left, right = left[left < right] + start, right[left < right] + start
        for part in np.array_split(np.arange(len(left)), len(left) // 4096 + 1):
            one, two = left[part], right[part]
            grey, colour = np.abs(greys[one] - greys[two]), np.abs(colours[one] - colours[two])
            step = np.minimum(steps[one], steps[two])
            same = np.sqrt((grey**2).mean(axis=1)) <= GREY_RMS * step
            same &= (grey.max(axis=1) <= GREY_MOST * step) & (colour.max(axis=1) <= COLOUR_MOST)
            pairs.append(np.stack([one[same], two[same]]))
    edges = np.concatenate(pairs, axis=1)
    graph = coo_array((np.ones(edges.shape[1]), (edges[0], edges[1])), shape=(len(summaries), len(summaries)))
    groups = defaultdict(list)
    for number, group in enumerate(connected_components(graph, directed=False)[1].tolist()):
        groups[group].append(number)
    return [group for group in groups.values() if len(group) > 1]
