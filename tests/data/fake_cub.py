"""A CUB-200-2011 in the official layout with the true names and classes (``datasets/cub.csv``), whose images are one byte each."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

MANIFEST = Path(__file__).parents[2] / "datasets" / "cub.csv"
Images = list[tuple[str, int]]
"""(file name, class number from 1) of each image."""


@cache
def official_images() -> tuple[tuple[str, int], ...]:
    """All 11,788 images in the official order."""
    with MANIFEST.open(encoding="utf-8", newline="") as stream:
        return tuple((row["path"], int(row["class"][:3])) for row in csv.DictReader(stream))


def write_lists(folder: Path, images: Images) -> Path:
    """Writes images.txt, image_class_labels.txt and classes.txt of `images` into `folder`."""
    folder.mkdir(parents=True)
    classes = {number: name.split("/")[0] for name, number in official_images()}
    rows = list(enumerate(images, start=1))
    (folder / "images.txt").write_text("".join(f"{row} {name}\n" for row, (name, _) in rows))
    (folder / "image_class_labels.txt").write_text("".join(f"{row} {number}\n" for row, (_, number) in rows))
    (folder / "classes.txt").write_text("".join(f"{number} {name}\n" for number, name in classes.items()))
    return folder


def write_images(folder: Path, images: Images) -> None:
    """Writes one byte per image below ``folder/images``."""
    for name in sorted({name.split("/")[0] for name, _ in images}):
        (folder / "images" / name).mkdir(parents=True)
    for name, _ in images:
        (folder / "images" / name).write_bytes(b"x")
