from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_checks import random_image, refused
from PIL import Image

from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.splits import Split, make_split
from retrieval_bench.data.verify import SHOWN, verify

SIZES = [(20, 30), (20, 31), (20, 36), (25, 33), (50, 40), (20, 30), (20, 30), (22, 60)]


@pytest.fixture
def images(tmp_path: Path) -> ImageTable:
    """Eight different images of four classes, two of each; the first two classes train."""
    for index, (height, width) in enumerate(SIZES):
        random_image(height, width, index).save(tmp_path / f"{index}.png")
    return ImageTable(tmp_path, tuple(f"{index}.png" for index in range(8)), np.arange(8) // 2, ("a", "b", "c", "d"))


def findings(images: ImageTable) -> list[str]:
    return verify(images, make_split("zero_shot", images))


def test_sizes_are_reported_and_no_copy_is_found(images: ImageTable) -> None:
    assert findings(images) == [
        "all 8 images decode",
        "width 30 to 60, median 32; height 20 to 50, median 20; shorter side at least 20 pixels",
        "no image is a copy of another",
    ]


def test_one_corrupt_image_is_named_with_its_reason(images: ImageTable) -> None:
    (images.root / "5.png").write_text("no image")
    with refused(images.root / "5.png", "not an image"):
        findings(images)


def test_corrupt_images_are_counted_and_the_first_is_named(images: ImageTable) -> None:
    for name in ("6.png", "3.png", "7.png"):
        (images.root / name).write_text("no image")
    with refused("3 of 8 images cannot be read", f"first: {images.root / '3.png'}"):
        findings(images)


def test_copies_across_the_split_are_named(images: ImageTable) -> None:
    shutil.copy(images.root / "0.png", images.root / "6.png")
    *_, summary, named = findings(images)
    assert summary == "2 images with equal pixels in 1 group(s): 1 across training and test, 1 across classes"
    assert named == "  equal: 0.png, 6.png"


def test_copies_across_classes_of_one_side_are_named(images: ImageTable) -> None:
    shutil.copy(images.root / "1.png", images.root / "2.png")
    *_, summary, named = findings(images)
    assert "0 across training and test, 1 across classes" in summary
    assert named == "  equal: 1.png, 2.png"


def test_copies_inside_a_class_are_counted_only(images: ImageTable) -> None:
    shutil.copy(images.root / "4.png", images.root / "5.png")
    assert findings(images)[2:] == [
        "2 images with equal pixels in 1 group(s): 0 across training and test, 0 across classes"
    ]


def test_the_same_pixels_in_another_format_are_a_copy_and_another_shape_is_none(images: ImageTable) -> None:
    Image.open(images.root / "0.png").save(images.root / "7.bmp")
    Image.fromarray(np.asarray(Image.open(images.root / "1.png")).reshape(31, 20, 3)).save(images.root / "2.png")
    other = replace(images, paths=(*images.paths[:7], "7.bmp"))
    assert findings(other)[3:] == ["  equal: 0.png, 7.bmp"]


def test_what_the_split_leaves_out_is_no_leak(images: ImageTable) -> None:
    shutil.copy(images.root / "0.png", images.root / "7.png")
    split = Split(np.array([0, 1]), np.array([4, 5]), np.array([4, 5]), np.array([0]))
    assert "0 across training and test, 1 across classes" in verify(images, split)[2]


def test_leaks_are_named_first_and_not_all(tmp_path: Path) -> None:
    count = 4 * (SHOWN + 1)
    for index in range(count):
        random_image(8, 8, index // 2 if index < count // 2 else index % (count // 2)).save(
            tmp_path / f"{index:02d}.png"
        )
    many = ImageTable(
        tmp_path, tuple(f"{index:02d}.png" for index in range(count)), np.arange(count), tuple(map(str, range(count)))
    )
    lines = verify(many, make_split("zero_shot", many))
    assert len(lines) == 3 + SHOWN
    assert all(int(line.split(", ")[-1][:2]) >= count // 2 for line in lines[3:]), (
        "each has a copy among the test classes"
    )
