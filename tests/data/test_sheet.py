from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_checks import files_below
from PIL import Image, ImageDraw

from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.sheet import CAPTION, GAP, HEADING, THUMBNAIL, draw_sheet, write_sheet
from retrieval_bench.data.splits import make_split

STEP, ROW = THUMBNAIL + GAP, THUMBNAIL + CAPTION + GAP


def colour(row: int) -> tuple[int, int, int]:
    return (30 + 10 * row, 200 - 10 * row, 40)


@pytest.fixture
def images(tmp_path: Path) -> ImageTable:
    """Twelve plain images, each of its own colour and shape; six classes of two; every class on both sides of the closed set."""
    for index in range(12):
        Image.new("RGB", (20 + 9 * index, 60), colour(index)).save(tmp_path / f"{index}.png")
    names = tuple(f"{index}.png" for index in range(12))
    sides = np.array(["train", "test"] * 6)
    return ImageTable(tmp_path, names, np.arange(12) // 2, ("a", "b", "c", "d", "e", "f"), 0, sides)


def shown(sheet: Image.Image, images: int) -> list[list[list[int]]]:
    """Which images (by their colour) each row of each column shows, column by column."""
    width = images * STEP + 3 * GAP
    known: dict[object, int] = {colour(row): row for row in range(12)}
    columns = []
    for column in range(2):
        rows = []
        for top in range(2 * HEADING, sheet.height - ROW + 1, ROW):
            places = [
                (column * (width + GAP) + 2 * GAP + n * STEP + THUMBNAIL // 2, top + CAPTION + THUMBNAIL // 2)
                for n in range(images)
            ]
            rows.append([known[pixel] for place in places if (pixel := sheet.getpixel(place)) in known])
        columns.append(rows)
    return columns


def sheet_of(images: ImageTable, protocol: str, classes: int, of_each: int, title: str = "birds") -> Image.Image:
    return draw_sheet(images, make_split(protocol, images), title, classes, of_each)


def test_training_classes_are_left_and_test_classes_right(images: ImageTable) -> None:
    sheet = sheet_of(images, "zero_shot", 3, 2)
    assert sheet.size == (2 * (2 * STEP + 3 * GAP) + GAP, 2 * HEADING + 3 * ROW + GAP)
    assert shown(sheet, 2) == [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]]


def test_fewer_classes_and_images_than_asked_leave_white(images: ImageTable) -> None:
    sheet = sheet_of(images, "zero_shot", 50, 4)
    assert sheet.size == (2 * (4 * STEP + 3 * GAP) + GAP, 2 * HEADING + 3 * ROW + GAP)
    assert shown(sheet, 4) == [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]]
    assert sheet.getpixel((2 * GAP + 3 * STEP + 9, 2 * HEADING + CAPTION + 9)) == (255, 255, 255)


def test_classes_are_spaced_over_all_and_images_are_the_first(images: ImageTable) -> None:
    assert shown(sheet_of(images, "zero_shot", 2, 1), 1) == [[[0], [4]], [[6], [10]]]


def test_closed_set_shows_the_same_classes_on_both_sides(images: ImageTable) -> None:
    assert shown(sheet_of(images, "closed_set", 6, 2), 2) == [
        [[0], [2], [4], [6], [8], [10]],
        [[1], [3], [5], [7], [9], [11]],
    ]


@pytest.mark.parametrize("name", ["x" * 300, "W" * 40, "名前" * 60, "", "a b\tc\nd"])
def test_long_and_strange_class_names_stay_in_their_column(name: str, images: ImageTable) -> None:
    plain = sheet_of(images, "zero_shot", 3, 2)
    strange = ImageTable(images.root, images.paths, images.labels, (name, *images.class_names[1:]), 0, images.sides)
    sheet = sheet_of(strange, "zero_shot", 3, 2)
    assert sheet.size == plain.size
    right = (2 * STEP + 3 * GAP, 0, sheet.width, sheet.height)
    assert sheet.crop(right).tobytes() == plain.crop(right).tobytes()


def test_headings_stay_in_their_columns_when_there_is_one_image(
    images: ImageTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[tuple[float, float]] = []
    text = ImageDraw.ImageDraw.text

    def note(pen: ImageDraw.ImageDraw, place: tuple[float, float], words: str, **options: object) -> None:
        if words.startswith(("train:", "test:")):
            ends.append((place[0], pen.textbbox(place, words, font=options["font"])[2]))  # pyright: ignore[reportArgumentType]
        text(pen, place, words, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    sheet = sheet_of(images, "zero_shot", 1, 1)
    (_, left_end), (right_start, right_end) = ends
    assert left_end <= right_start
    assert right_end <= sheet.width


def test_sheet_is_written_as_png_and_nothing_else(images: ImageTable, tmp_path: Path) -> None:
    sheet = sheet_of(images, "zero_shot", 3, 2)
    path = tmp_path / "out" / "sheet.jpg"  # the name does not matter
    write_sheet(sheet, path)
    with Image.open(path) as written:
        assert (written.format, written.size) == ("PNG", sheet.size)
        assert written.convert("RGB").tobytes() == sheet.tobytes()
    assert files_below(path.parent) == ["sheet.jpg"]
