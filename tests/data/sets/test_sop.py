from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from data_checks import refused
from layouts import class_of, pack, paths_of, touch

from retrieval_bench.data.catalog import DATASETS, open_dataset
from retrieval_bench.data.dataset import Counts
from retrieval_bench.data.sets import sop
from retrieval_bench.files import digest

Rows = list[tuple[int, str]]
TRAIN: Rows = [
    (product, f"{kind}_final/1110{product}_{view}.JPG")
    for product, kind in ((1, "bicycle"), (2, "chair"))
    for view in range(3)
]
TEST: Rows = [
    (product, f"{kind}_final/1110{product}_{view}.JPG")
    for product, kind in ((3, "bicycle"), (4, "chair"))
    for view in range(2)
]
NAME = "Stanford_Online_Products"

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture
def small(miniature: Callable[[str, Counts], None]) -> None:
    miniature("sop", Counts(4, 10, {"zero_shot": {"train": 6, "test": 4}}))


def write_list(folder: Path, side: str, rows: Rows, first: int) -> None:
    lines = [f"{row} {product} {1 + ('chair' in path)} {path}" for row, (product, path) in enumerate(rows, start=first)]
    (folder / f"Ebay_{side}.txt").write_text("\n".join(["image_id class_id super_class_id path", *lines, ""]))


def official(folder: Path, train: Rows = TRAIN, test: Rows = TEST) -> Path:
    touch(folder, *(path for _, path in TRAIN + TEST))
    write_list(folder, "train", train, 1)
    write_list(folder, "test", test, len(train) + 1)
    return folder


def zipped(archive: Path) -> Path:
    official(archive.parent / "unpacked" / NAME)
    pack(archive, archive.parent / "unpacked")
    shutil.rmtree(archive.parent / "unpacked")
    return archive


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "folder": lambda root: official(root / NAME),
    "parent": lambda root: official(root / NAME).parent,
    "zip": lambda root: zipped(root / "mine.zip"),
    "folder with the zip": lambda root: zipped(root / f"{NAME}.zip").parent,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_official_split(layout: str, tmp_path: Path, empty_cache: Path) -> None:
    table, split = open_dataset("sop", LAYOUTS[layout](tmp_path / "data"))
    assert paths_of(table, split.train) == [path for _, path in TRAIN]
    assert paths_of(table, split.query) == paths_of(table, split.gallery) == [path for _, path in TEST]
    assert table.class_names == ("bicycle_1", "chair_2", "bicycle_3", "chair_4")
    assert class_of(table)["chair_final/11104_1.JPG"] == "chair_4"
    assert table.root.name == NAME


def test_zip_in_the_cache_needs_no_folder(tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = zipped(empty_cache / "downloads" / f"{NAME}.zip")
    monkeypatch.setattr(sop, "ARCHIVE", replace(sop.ARCHIVE, md5=digest(kept, "md5")))
    assert len(open_dataset("sop", None)[0]) == 10
    monkeypatch.setattr(sop, "ARCHIVE", replace(sop.ARCHIVE, md5="0" * 32))
    with refused(kept, "md5"):
        open_dataset("sop", None)


def test_there_is_no_closed_set(tmp_path: Path) -> None:
    with refused(official(tmp_path), "no official training and test images"):
        open_dataset("sop", tmp_path, "closed_set")


@pytest.mark.parametrize("name", ["Ebay_train.txt", "Ebay_test.txt"])
def test_missing_list_is_named(name: str, tmp_path: Path) -> None:
    (official(tmp_path) / name).unlink()
    with refused(tmp_path, name, "is missing"):
        open_dataset("sop", tmp_path)


def test_one_image_too_few_is_refused(tmp_path: Path) -> None:
    with refused(official(tmp_path, test=TEST[:-1]), "found 9 images, expected 10"):
        open_dataset("sop", tmp_path)


def test_image_in_the_wrong_list_is_refused(tmp_path: Path) -> None:
    moved = [*TEST, (4, TRAIN[-1][1])]
    with refused(official(tmp_path, train=TRAIN[:-1], test=moved), "found 5 training images", "expected 6"):
        open_dataset("sop", tmp_path)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ([*TRAIN, (3, "x_final/1.JPG")], TEST),
        (TRAIN, [*TEST, (6, "x_final/1.JPG")]),
        ([(0, "x_final/1.JPG"), *TRAIN], TEST),
        ([], TEST),
        (TRAIN, []),
    ],
    ids=["product on both sides", "gap", "product 0", "no training image", "no test image"],
)
def test_product_numbers_that_do_not_fit_are_refused(train: Rows, test: Rows, tmp_path: Path) -> None:
    with refused(official(tmp_path, train, test), "class numbers"):
        open_dataset("sop", tmp_path)


@pytest.mark.parametrize(
    ("line", "word"),
    [("7 2 chair_final/1.JPG", "line 8 has 3 columns, not 4"), ("7 two 2 chair_final/1.JPG", "'two'")],
    ids=["three columns", "no number"],
)
def test_damaged_line_is_named(line: str, word: str, tmp_path: Path) -> None:
    with (official(tmp_path) / "Ebay_train.txt").open("a") as stream:
        stream.write(line)
    with refused(tmp_path, word):
        open_dataset("sop", tmp_path)


def test_missing_folder_of_images_is_named(tmp_path: Path) -> None:
    shutil.rmtree(official(tmp_path) / "chair_final")
    with refused(tmp_path / "chair_final", "folder is missing"):
        open_dataset("sop", tmp_path)


def test_zip_of_something_else_is_refused(tmp_path: Path, empty_cache: Path) -> None:
    pack(tmp_path / "other.zip", touch(tmp_path / "other", "readme.txt"))
    with refused(tmp_path / "other.zip", "Ebay_train.txt is missing"):
        open_dataset("sop", tmp_path / "other.zip")


def test_papers_report_powers_of_ten() -> None:
    assert DATASETS["sop"].ks == (1, 10, 100, 1000)
