"""Decoding every image of a data set: which do not decode, how large are they, which are copies or near copies of
others, and what was passed over in the folder?"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from retrieval_bench.data.listing import HIDDEN, SYSTEM, foreign, printable
from retrieval_bench.data.reading import in_threads, read_image, read_kind
from retrieval_bench.data.splits import Split
from retrieval_bench.data.table import ImageTable
from retrieval_bench.errors import UserError

SHOWN = 5
"""Images or groups of copies that are named of each kind."""
PAIRS = 1 << 22
"""Of images, whose hashes are compared at once."""
HASH_BITS, GREY_RMS, GREY_MOST, COLOUR_MOST = 8, 0.2, 0.5, 16.0
"""Largest differences of near copies, see :func:`near_copies`."""


@dataclass(frozen=True)
class Look:
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


def verify(table: ImageTable, split: Split | None) -> tuple[list[str], list[str]]:
    """Decodes every image. Returns lines about what was found, and lines about what makes the data set useless."""
    results = list(in_threads(_look, [table.root / path for path in table.paths], "decoding", len(table)))
    unreadable = [result for result in results if isinstance(result, str)]
    looks = {row: look for row, look in enumerate(results) if not isinstance(look, str)}
    lines = [f"all {len(table):,} images decode"]
    if unreadable:
        lines = [f"{len(unreadable):,} of {len(table):,} images cannot be read", *some(unreadable, "  ")]
    if looks:
        low, middle, high = (
            np.percentile([look.size for look in looks.values()], share, axis=0).astype(int) for share in (0, 50, 100)
        )
        lines.append(
            f"width {low[0]} to {high[0]}, median {middle[0]}; height {low[1]} to {high[1]}, median {middle[1]}; "
            f"shorter side at least {min(low)} pixels"
        )
    lines += [*_kinds(table, looks), *_copies(table, split, looks), *_names(table)]
    return lines, unreadable


def _look(path: Path) -> Look | str:
    """What is to be known about an image; or what is wrong."""
    try:
        image, (mode, frames) = read_image(path), read_kind(path)
    except UserError as error:
        return str(error)
    grey = image.convert("L")
    steps = np.diff(np.asarray(grey.resize((9, 8), Image.Resampling.BILINEAR), dtype=np.int16))
    return Look(
        size=image.size,
        mode=mode,
        frames=frames,
        plain=image.getcolors(1) is not None,
        digest=hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).digest(),
        hash=int.from_bytes(np.packbits(steps > 0).tobytes()),
        grey=np.asarray(grey.resize((16, 16), Image.Resampling.BILINEAR)).reshape(-1),
        colour=np.asarray(image.resize((4, 4), Image.Resampling.BILINEAR)).reshape(-1),
    )


def _kinds(table: ImageTable, looks: dict[int, Look]) -> Iterator[str]:
    """Lines about modes that are converted, frames that are left out, and images that show nothing."""
    modes = Counter(look.mode for look in looks.values())
    if modes.keys() - {"RGB", "L"}:
        yield "modes: " + ", ".join(
            f"{count:,} {mode}" for mode, count in sorted(modes.items(), key=lambda m: (-m[1], m[0]))
        )
    for what, rows in (
        ("with several frames or pages, the first is read", [row for row, look in looks.items() if look.frames > 1]),
        ("of one colour all over", [row for row, look in looks.items() if look.plain]),
    ):
        if rows:
            yield f"{len(rows):,} {what}: {_listed(table.paths[row] for row in rows)}"


def _copies(table: ImageTable, split: Split | None, looks: dict[int, Look]) -> Iterator[str]:
    """Lines about images with equal pixels, and about near copies."""
    equal: defaultdict[bytes, list[int]] = defaultdict(list)
    for row, look in looks.items():
        equal[look.digest].append(row)
    first = [rows[0] for rows in equal.values()]
    near = [
        sorted(row for member in group for row in equal[looks[first[member]].digest])
        for group in near_copies([looks[row] for row in first])
    ]
    train, test = (set(split.train.tolist()), set(split.test.tolist())) if split else (set(), set())
    if len(equal) == len(looks) and not near:
        yield "no image is a copy of another"
    for what, name, groups in (
        ("with equal pixels", "equal", [rows for rows in equal.values() if len(rows) > 1]),
        ("that are near copies (another size, encoding or format)", "near", near),
    ):
        across = [rows for rows in groups if train.intersection(rows) and test.intersection(rows)]
        mixed = [rows for rows in groups if len(np.unique(table.labels[rows])) > 1]
        inside = [rows for rows in groups if len(test.intersection(rows)) > 1]
        if groups:
            yield (
                f"{sum(map(len, groups)):,} images {what} in {len(groups):,} group(s): {len(across):,} across training "
                f"and test, {len(mixed):,} across classes, {len(inside):,} inside the test"
            )
            named = dict.fromkeys(map(tuple, [*across, *mixed, *inside]))
            yield from some([f"{name}: {_listed(table.paths[row] for row in rows)}" for rows in named], "  ")


def near_copies(looks: Sequence[Look]) -> list[list[int]]:
    """Groups (numbers into `looks`) of images that show the same picture in another size, encoding or format.

    In two such images at most 8 of the 64 bits of the difference hash differ (Krawetz, Kind of Like That, 2013: is a
    cell of 9 x 8 brighter than its left neighbour?). Their versions of 16 x 16 grey cells differ by at most 0.2 (root
    mean square) and 0.5 (largest), in units of the root mean square step between neighbouring cells: what scaling and
    compression do grows with the steps, while drawings of one kind differ much in few cells. No colour differs by more
    than 16 of 255 in 4 x 4 cells. On 1,311 photographs of CUB-200-2011, 9,659 drawings of emoji and 1,600 images of
    noise that finds at least 97 % of copies at half (noise: 3/4) or double size, as JPEG of quality 75 or 30, and as
    WebP of quality 50; it joins no two of the photographs or of the noise, and 8 of 47 million pairs of drawings.
    """
    if not looks:
        return []
    hashes = np.array([look.hash for look in looks], dtype=np.uint64)
    greys = np.array([look.grey for look in looks], dtype=np.float32)
    colours = np.array([look.colour for look in looks], dtype=np.float32)
    cells = greys.reshape(-1, 16, 16)
    steps = np.sqrt(((np.diff(cells, axis=1) ** 2).mean((1, 2)) + (np.diff(cells, axis=2) ** 2).mean((1, 2))) / 2)
    pairs = []
    block = max(1, PAIRS // len(looks))
    for start in range(0, len(looks), block):
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
    graph = coo_array((np.ones(edges.shape[1]), (edges[0], edges[1])), shape=(len(looks), len(looks)))
    groups = defaultdict(list)
    for number, group in enumerate(connected_components(graph, directed=False)[1].tolist()):
        groups[group].append(number)
    return [group for group in groups.values() if len(group) > 1]


def _names(table: ImageTable) -> Iterator[str]:
    """Lines about names of classes that hardly differ, and about what the folder holds besides images."""
    spellings: defaultdict[str, list[str]] = defaultdict(list)
    for name in table.class_names:
        spellings[unicodedata.normalize("NFKC", "".join(name.split())).casefold()].append(name)
    alike = [", ".join(names) for names in spellings.values() if len(names) > 1]
    if alike:
        yield f"class names that differ in case or spaces only: {'; '.join(alike[:SHOWN])}"
    named = [path for path in table.paths if any(foreign(part) for part in path.split("/") if part != "..")]
    if named:
        yield f"{len(named):,} are named in the table, but {SYSTEM} or {HIDDEN}: {_listed(named)}"
    if table.listing:
        own = zip(table.paths, table.labels.tolist(), strict=True)
        deep = [path for path, label in own if path.split("/")[-2] != table.class_names[label]]
        if deep:
            yield f"{len(deep):,} in folders below the folder of their class: {_listed(deep)}"
        if table.listing.links:
            yield f"{len(table.listing.links):,} followed links: {_listed(table.listing.links)}"
        if passed_over := table.listing.passed_over():
            yield f"passed over: {passed_over}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(some([printable(name) for name in names]))


def some(lines: Sequence[str], indent: str = "") -> list[str]:
    """The first five lines, and how many more there are."""
    more = [f"and {len(lines) - SHOWN:,} more"] if len(lines) > SHOWN else []
    return [indent + line for line in [*lines[:SHOWN], *more]]
