"""Decoding every image of a data set: which do not decode, how large are they, which are copies or near copies of
others, and what was passed over in the folder?"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from retrieval_bench.data.listing import HIDDEN, SYSTEM, foreign, printable
from retrieval_bench.data.near_copies import ImageSummary, near_copies
from retrieval_bench.data.reading import in_threads, read_image, read_kind
from retrieval_bench.data.splits import Split
from retrieval_bench.data.table import ImageTable
from retrieval_bench.errors import UserError

SHOWN = 5
"""Images or groups of copies that are named of each kind."""


def summarize(table: ImageTable) -> list[ImageSummary | str]:
    """Decodes every image: what is to be known about each, or what is wrong."""
    return list(in_threads(_summary, [table.root / path for path in table.paths], "decoding", len(table)))


def verify(
    table: ImageTable, split: Split | None, results: Sequence[ImageSummary | str]
) -> tuple[list[str], list[str]]:
    """Lines about what :func:`summarize` found, and lines about what makes the data set useless."""
    unreadable = [result for result in results if isinstance(result, str)]
    summaries = {row: summary for row, summary in enumerate(results) if not isinstance(summary, str)}
    lines = [f"all {len(table):,} images decode"]
    if unreadable:
        lines = [f"{len(unreadable):,} of {len(table):,} images cannot be read", *some(unreadable, "  ")]
    if summaries:
        low, middle, high = (
            np.percentile([summary.size for summary in summaries.values()], share, axis=0).astype(int)
            for share in (0, 50, 100)
        )
        lines.append(
            f"width {low[0]} to {high[0]}, median {middle[0]}; height {low[1]} to {high[1]}, median {middle[1]}; "
            f"shorter side at least {min(low)} pixels"
        )
    lines += [*_kinds(table, summaries), *_copies(table, split, summaries), *_names(table)]
    return lines, unreadable


def _summary(path: Path) -> ImageSummary | str:
    """What is to be known about an image; or what is wrong."""
    try:
        image, (mode, frames) = read_image(path), read_kind(path)
    except UserError as error:
        return str(error)
    grey = image.convert("L")
    steps = np.diff(np.asarray(grey.resize((9, 8), Image.Resampling.BILINEAR), dtype=np.int16))
    return ImageSummary(
        size=image.size,
        mode=mode,
        frames=frames,
        plain=image.getcolors(1) is not None,
        digest=hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).digest(),
        hash=int.from_bytes(np.packbits(steps > 0).tobytes()),
        grey=np.asarray(grey.resize((16, 16), Image.Resampling.BILINEAR)).reshape(-1),
        colour=np.asarray(image.resize((4, 4), Image.Resampling.BILINEAR)).reshape(-1),
    )


def _kinds(table: ImageTable, summaries: dict[int, ImageSummary]) -> Iterator[str]:
    """Lines about modes that are converted, frames that are left out, and images that show nothing."""
    modes = Counter(summary.mode for summary in summaries.values())
    if modes.keys() - {"RGB", "L"}:
        yield "modes: " + ", ".join(
            f"{count:,} {mode}" for mode, count in sorted(modes.items(), key=lambda m: (-m[1], m[0]))
        )
    for what, rows in (
        (
            "with several frames or pages, the first is read",
            [row for row, summary in summaries.items() if summary.frames > 1],
        ),
        ("of one colour all over", [row for row, summary in summaries.items() if summary.plain]),
    ):
        if rows:
            yield f"{len(rows):,} {what}: {_listed(table.paths[row] for row in rows)}"


def _copies(table: ImageTable, split: Split | None, summaries: dict[int, ImageSummary]) -> Iterator[str]:
    """Lines about images with equal pixels, and about near copies."""
    equal: defaultdict[bytes, list[int]] = defaultdict(list)
    for row, summary in summaries.items():
        equal[summary.digest].append(row)
    first = [rows[0] for rows in equal.values()]
    near = [
        sorted(row for member in group for row in equal[summaries[first[member]].digest])
        for group in near_copies([summaries[row] for row in first])
    ]
    train, test = (set(split.train.tolist()), set(split.test.tolist())) if split else (set(), set())
    if len(equal) == len(summaries) and not near:
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
