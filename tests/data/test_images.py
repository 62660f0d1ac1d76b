from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_checks import refused

from retrieval_bench.data.images import ImageTable, expect_count


@pytest.fixture
def table(tmp_path: Path) -> ImageTable:
    paths = ("a/1.png", "a/2.png", "b/1.png")
    for path in paths:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"12345")
    return ImageTable(tmp_path, paths, np.array([0, 0, 1]), ("wren", "robin"))


def test_fingerprint_is_the_same_for_a_copy_elsewhere(table: ImageTable, tmp_path: Path) -> None:
    other = tmp_path / "copy"
    for path in table.paths:
        (other / path).parent.mkdir(parents=True, exist_ok=True)
        (other / path).write_bytes(b"54321")
    assert replace(table, root=other).fingerprint() == table.fingerprint()


def test_fingerprint_changes_with_size_name_and_class(table: ImageTable) -> None:
    before = table.fingerprint()
    relabelled = replace(table, labels=np.array([0, 1, 1])).fingerprint()
    reordered = replace(table, paths=("a/2.png", "a/1.png", "b/1.png")).fingerprint()
    (table.root / "a/2.png").write_bytes(b"123456")
    assert len({before, relabelled, reordered, replace(table).fingerprint()}) == 4


def test_missing_image_is_named(table: ImageTable) -> None:
    (table.root / "b/1.png").unlink()
    with refused(table.root / "b/1.png", "is missing"):
        table.fingerprint()


def test_empty_image_is_named(table: ImageTable) -> None:
    (table.root / "a/2.png").write_bytes(b"")
    with refused(table.root / "a/2.png", "is empty"):
        table.fingerprint()


def test_missing_folder_is_named_in_place_of_each_of_its_images(table: ImageTable) -> None:
    shutil.rmtree(table.root / "a")
    with refused(f"{table.root / 'a'}: folder is missing"):
        _ = table.files


def test_file_in_place_of_a_folder_is_named(table: ImageTable) -> None:
    shutil.rmtree(table.root / "b")
    (table.root / "b").write_bytes(b"x")
    with refused(table.root / "b", "is missing"):
        _ = table.files


def test_files_have_sizes_and_times_in_the_order_of_the_images(table: ImageTable) -> None:
    (table.root / "b/1.png").write_bytes(b"1234567")
    assert [size for size, _ in table.files] == [5, 5, 7]
    assert [time for _, time in table.files] == [(table.root / path).stat().st_mtime_ns for path in table.paths]


@pytest.mark.parametrize(("classes", "first", "expected"), [(4, 0, 2), (5, 0, 2), (5, 4, 4), (1, 0, 0)])
def test_zero_shot_trains_on_half_of_the_classes_unless_told(
    classes: int, first: int, expected: int, tmp_path: Path
) -> None:
    table = ImageTable(tmp_path, (), np.zeros(0, dtype=np.int64), tuple("abcdef"[:classes]), first)
    assert table.train_classes == expected


def test_count_off_by_one_is_refused(tmp_path: Path) -> None:
    expect_count("images", 1_000, 1_000, tmp_path)
    with refused(tmp_path, "found 1,001 images, expected 1,000"):
        expect_count("images", 1_001, 1_000, tmp_path)
