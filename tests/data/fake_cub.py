"""A CUB-200-2011 in the official layout with the true names, classes and sides (``datasets/cub*.csv``), whose images
are one byte each."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

MANIFESTS = Path(__file__).parents[2] / "datasets"
Images = list[tuple[str, int]]
"""(file name, class number from 1) of each image."""


@cache
def read_manifest(name: str) -> list[dict[str, str]]:
    """The rows of ``datasets/<name>.csv``."""
    with (MANIFESTS / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@cache
def official_images() -> tuple[tuple[str, int], ...]:
    """All 11,788 images in the official order."""
    return tuple((row["path"], int(row["class"][:3])) for row in read_manifest("cub"))


def write_lists(folder: Path, images: Images) -> Path:
    """Writes the four text files of `images` into `folder`; the n-th image is on the closed-set side of the n-th
    official one."""
    folder.mkdir(parents=True)
    classes = {number: name.split("/")[0] for name, number in official_images()}
    rows = list(enumerate(images, start=1))
    (folder / "images.txt").write_text("".join(f"{row} {name}\n" for row, (name, _) in rows))
    (folder / "image_class_labels.txt").write_text("".join(f"{row} {number}\n" for row, (_, number) in rows))
    flags = [int(row["split"] == "train") for row in read_manifest("cub.closed_set")]
    (folder / "train_test_split.txt").write_text(
        "".join(f"{row} {flag}\n" for (row, _), flag in zip(rows, flags, strict=False))
    )
    (folder / "classes.txt").write_text("".join(f"{number} {name}\n" for number, name in classes.items()))
    return folder


def write_images(folder: Path, images: Images) -> None:
    """Writes one byte per image below ``folder/images``."""
    for name in sorted({name.split("/")[0] for name, _ in images}):
        (folder / "images" / name).mkdir(parents=True)
    for name, _ in images:
        (folder / "images" / name).write_bytes(b"x")
