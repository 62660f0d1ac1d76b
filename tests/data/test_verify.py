"""What ``data verify`` finds, and what ``data show`` draws."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from retrieval_bench.data.sheet import CAPTION, GAP, HEADING, THUMBNAIL, Tile, draw_rows, draw_sheet, write_sheet
from retrieval_bench.data.splits import Split, make_split
from retrieval_bench.data.table import ImageTable
from retrieval_bench.data.verify import SHOWN, summarize, verify
from tests.data.data_checks import files_below, random_image

SIZES = [(20, 30), (20, 31), (20, 36), (25, 33), (50, 40), (20, 30), (20, 30), (22, 60)]


@pytest.fixture
def images(tmp_path: Path) -> ImageTable:
    """Eight different images of four classes, two of each; the first two classes train."""
    for index, (height, width) in enumerate(SIZES):
        random_image(height, width, index).save(tmp_path / f"{index}.png")
    return ImageTable(tmp_path, tuple(f"{index}.png" for index in range(8)), np.arange(8) // 2, tuple("abcd"))


def findings(images: ImageTable, split: Split | None = None) -> list[str]:
    lines, unreadable = verify(images, split or make_split("zero_shot", images), summarize(images))
    assert not unreadable
    return lines


def test_sizes_are_reported_and_there_is_no_copy(images: ImageTable) -> None:
    assert findings(images) == [
        "all 8 images decode",
        "width 30 to 60, median 32; height 20 to 50, median 20; shorter side at least 20 pixels",
        "no image is a copy of another",
    ]


@pytest.mark.parametrize("second", ["Caf\xe9", "cafe\u0301", "ca f\xe9", "caf\xe9 "])
def test_class_names_that_look_alike_are_named(second: str, images: ImageTable) -> None:
    named = replace(images, class_names=("caf\xe9", second, "c", "d"))
    assert findings(named)[-1] == f"class names that differ in case or spaces only: caf\xe9, {second}"


def test_corrupt_images_are_counted_and_named(images: ImageTable) -> None:
    for count, bad in enumerate(("5.png", "6.png", "7.png"), start=1):
        (images.root / bad).write_text("no image")
        lines, unreadable = verify(images, None, summarize(images))
        assert lines[0] == f"{count} of 8 images cannot be read"
        assert lines[1 : count + 1] == [f"  {line}" for line in unreadable]
        assert f"{images.root / bad}: image cannot be decoded (not an image)" in unreadable[-1]


@pytest.mark.parametrize(
    ("first", "second", "across", "mixed", "inside"),
    [(0, 6, 1, 1, 0), (1, 2, 0, 1, 0), (4, 5, 0, 0, 1), (0, 1, 0, 0, 0)],
    ids=["split", "class", "test", "training class"],
)
def test_copies_are_counted_and_named_where_they_matter(
    first: int, second: int, across: int, mixed: int, inside: int, images: ImageTable
) -> None:
    shutil.copy(images.root / f"{first}.png", images.root / f"{second}.png")
    summary = (
        "2 images with equal pixels in 1 group(s): {} across training and test, {} across classes, {} inside the test"
    )
    named = [f"  equal: {first}.png, {second}.png"] if mixed or inside else []
    assert findings(images)[2:] == [summary.format(across, mixed, inside), *named]
    split = Split(np.array([0, 1]), np.array([4, 5]), np.array([4, 5]), np.array([0]))
    assert findings(images, split)[2] == summary.format(0, mixed, inside), "what the split leaves out is no leak"


def test_copy_is_of_pixels_and_shape_not_of_bytes(images: ImageTable) -> None:
    Image.open(images.root / "0.png").save(images.root / "7.bmp")
    Image.fromarray(np.asarray(Image.open(images.root / "1.png")).reshape(31, 20, 3)).save(images.root / "2.png")
    assert findings(replace(images, paths=(*images.paths[:7], "7.bmp")))[3:] == ["  equal: 0.png, 7.bmp"]


def test_leaks_are_named_first_and_not_all(tmp_path: Path) -> None:
    count = 4 * (SHOWN + 1)
    for index in range(count):
        seed = index // 2 if index < count // 2 else index % (count // 2)
        random_image(8, 8, seed).save(tmp_path / f"{index:02d}.png")
    paths = tuple(f"{index:02d}.png" for index in range(count))
    lines = findings(ImageTable(tmp_path, paths, np.arange(count), tuple(map(str, range(count)))))
    assert len(lines) == 4 + SHOWN
    assert lines[-1] == "  and 1 more"
    assert all(int(line.split(", ")[-1][:2]) >= count // 2 for line in lines[3:-1]), "each has a copy on the test side"


def drawing(seed: int, side: int) -> Image.Image:
    """A smooth pattern, or (from 1,000 on) noise."""
    return random_image(side if seed >= 1_000 else 6, side if seed >= 1_000 else 6, seed).resize(
        (side, side), Image.Resampling.BICUBIC
    )


VERSIONS: dict[str, tuple[str, Callable[[Image.Image], Image.Image], dict[str, Any]]] = {
    "half": ("png", lambda image: image.resize((image.width // 2, image.height // 2)), {}),
    "thumbnail": ("jpg", lambda image: image.resize((80, 80)), {"quality": 75}),
    "larger": ("png", lambda image: image.resize((2 * image.width, 2 * image.height)), {}),
    "odd size": ("webp", lambda image: image.resize((151, 149)), {"quality": 70}),
    "JPEG": ("jpg", lambda image: image, {"quality": 60}),
    "palette": ("gif", lambda image: image, {}),
}


CASES = [(seed, name) for name in VERSIONS for seed in (3, 1_000) if (seed, name) != (1_000, "palette")]


@pytest.mark.parametrize(("seed", "name"), CASES)
def test_near_copies_are_found(seed: int, name: str, tmp_path: Path) -> None:
    """The picture in another size, encoding or format, beside others."""
    ending, change, options = VERSIONS[name]
    for number in range(7):
        drawing(seed + number, 200).save(tmp_path / f"{number}.png")
    change(drawing(seed, 200)).save(tmp_path / f"7.{ending}", **options)
    paths = (*(f"{number}.png" for number in range(7)), f"7.{ending}")
    lines = findings(ImageTable(tmp_path, paths, np.arange(8) // 2, tuple("abcd")))
    assert lines[-1] == f"  near: 0.png, 7.{ending}"
    assert "2 images that are near copies" in lines[-2]
    assert "1 across training and test, 1 across classes, 0 inside the test" in lines[-2]


def test_different_drawings_are_no_copies(tmp_path: Path) -> None:
    """On one background: other faces, a moved part, another colour, plain sheets of different colours."""
    parts = [((60, 70), (140, 80)), ((60, 70), (80, 140)), ((100, 100), (140, 140)), ((60, 120), (140, 130))]
    number = 0
    for colour in ("gold", "orange", "tomato"):
        for box in parts:
            image = Image.new("RGB", (200, 200), "white")
            pen = ImageDraw.Draw(image)
            pen.ellipse((20, 20, 180, 180), fill=colour)
            pen.rectangle(box, fill="black")
            image.save(tmp_path / f"{number}.png")
            number += 1
    for colour in ("white", "black", "red", "pink"):
        Image.new("RGB", (200, 200), colour).save(tmp_path / f"{number}.png")
        number += 1
    paths = tuple(f"{index}.png" for index in range(number))
    assert findings(ImageTable(tmp_path, paths, np.arange(number) // 2, tuple("abcdefgh")))[-1] == (
        "no image is a copy of another"
    )


STEP, ROW = THUMBNAIL + GAP, THUMBNAIL + CAPTION + GAP


def colour(row: int) -> tuple[int, int, int]:
    return (30 + 10 * row, 200 - 10 * row, 40)


@pytest.fixture
def plain(tmp_path: Path) -> ImageTable:
    """Twelve plain images, each of its own colour and shape; six classes of two; every class on both sides of the
    closed set."""
    for index in range(12):
        Image.new("RGB", (20 + 9 * index, 60), colour(index)).save(tmp_path / f"{index}.png")
    names = tuple(f"{index}.png" for index in range(12))
    return ImageTable(tmp_path, names, np.arange(12) // 2, tuple("abcdef"), 0, np.array(["train", "test"] * 6))


def shown(sheet: Image.Image, images: int) -> list[list[list[int]]]:
    """Which images (by their colour) each row of each column shows, column by column."""
    width = images * STEP + 3 * GAP
    known: dict[object, int] = {colour(row): row for row in range(12)}
    columns = []
    for left in (2 * GAP + THUMBNAIL // 2, width + 3 * GAP + THUMBNAIL // 2):
        rows = []
        for top in range(2 * HEADING + CAPTION + THUMBNAIL // 2, sheet.height, ROW):
            pixels = [sheet.getpixel((left + number * STEP, top)) for number in range(images)]
            rows.append([known[pixel] for pixel in pixels if pixel in known])
        columns.append(rows)
    return columns


@pytest.mark.parametrize(
    ("protocol", "classes", "images", "expected"),
    [
        ("zero_shot", 3, 2, [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]]),
        ("zero_shot", 50, 4, [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]]),
        ("zero_shot", 2, 1, [[[0], [4]], [[6], [10]]]),
        ("closed_set", 6, 2, [[[0], [2], [4], [6], [8], [10]], [[1], [3], [5], [7], [9], [11]]]),
    ],
)
def test_sheet_shows_spaced_classes_of_both_sides(
    protocol: str, classes: int, images: int, expected: list[list[list[int]]], plain: ImageTable
) -> None:
    sheet = draw_sheet(plain, make_split(protocol, plain), "birds", classes, images)
    assert sheet.size == (2 * (images * STEP + 3 * GAP) + GAP, 2 * HEADING + len(expected[0]) * ROW + GAP)
    assert shown(sheet, images) == expected
    write_sheet(sheet, plain.root / "out" / "sheet.jpg")  # the name does not matter
    with Image.open(plain.root / "out" / "sheet.jpg") as written:
        assert written.format == "PNG"
        assert written.convert("RGB").tobytes() == sheet.tobytes()
    assert files_below(plain.root / "out") == ["sheet.jpg"]


@pytest.mark.parametrize("name", ["x" * 300, "名前" * 60, "", "a b\tc\nd"])
def test_strange_names_stay_in_their_column(name: str, plain: ImageTable) -> None:
    split = make_split("zero_shot", plain)
    usual, strange = (
        draw_sheet(replace(plain, class_names=(first, *"bcdef")), split, "birds", 3, 1) for first in ("a", name)
    )
    right = (STEP + 3 * GAP, 0, usual.width, usual.height)
    assert strange.crop(right).tobytes() == usual.crop(right).tobytes()


def test_rows_show_whole_images(plain: ImageTable) -> None:
    tiles = [Tile(plain.root / f"{index}.png", f"{index} " + "x" * 80, "second") for index in range(5)]
    sheet = draw_rows([tiles[:3], tiles[3:]])
    assert sheet.size == (3 * STEP + 7 * GAP, 2 * (THUMBNAIL + 2 * CAPTION) + 2 * GAP)
    left, top = 2 * GAP + THUMBNAIL // 2, 2 * CAPTION - GAP + THUMBNAIL // 2
    middle = [(left, top), (left + STEP + 4 * GAP, top), (left + 2 * STEP + 4 * GAP, top)]
    assert [sheet.getpixel(position) for position in middle] == [colour(index) for index in range(3)]
    assert sheet.getpixel((middle[2][0], middle[2][1] + THUMBNAIL + 2 * CAPTION)) == (255, 255, 255)
