from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from data_checks import files_below, refused
from layouts import class_of, pack, paths_of, touch

from retrieval_bench.data.catalog import DATASETS, open_dataset
from retrieval_bench.data.dataset import Counts
from retrieval_bench.data.download import install
from retrieval_bench.data.sets.inshop import ARCHIVES

Rows = list[tuple[str, str, str]]


def item(number: int, side: str, *views: int) -> Rows:
    return [(f"img/WOMEN/Dresses/id_{number:08d}/0{view}_1_front.jpg", f"id_{number:08d}", side) for view in views]


ROWS = [
    *item(2, "train", 1, 2, 3),
    *item(1, "query", 1),
    *item(1, "gallery", 2),
    *item(3, "train", 1, 2),
    *item(5, "train", 1, 2),
]
ROWS += [*item(6, "train", 1, 2), *item(4, "query", 1, 2), *item(4, "gallery", 3, 4, 5)]
SIDES = {"train": 9, "query": 3, "gallery": 4}

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture
def small(miniature: Callable[[str, Counts], None]) -> None:
    miniature("inshop", Counts(6, len(ROWS), {"zero_shot": SIDES}))


def write_list(path: Path, rows: Rows = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{image:<75}{name:<13}{side}" for image, name, side in rows]
    path.write_text("\n".join([str(len(rows)), "image_name  item_id  evaluation_status", *lines, ""]))
    return path


def layout(root: Path, images: str, lists: str, packed: bool = False) -> Path:
    """The data set with ``img`` (or ``img.zip``) in the folder `images` and the list in the folder `lists`, both below `root`."""
    write_list(root / lists / "list_eval_partition.txt")
    touch(root / images, *(image for image, *_ in ROWS))
    if packed:
        pack(root / images / "img.zip", root / images, "img")
        shutil.rmtree(root / images / "img")
    return root


BENCHMARK = "In-shop Clothes Retrieval Benchmark"
LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "official": lambda root: layout(root, "Img", "Eval"),
    "official, packed": lambda root: layout(root, "Img", "Eval", packed=True),
    "flat": lambda root: layout(root, "", ""),
    "flat, packed": lambda root: layout(root, "", "", packed=True),
    "parent": lambda root: layout(root, f"{BENCHMARK}/Img", f"{BENCHMARK}/Eval"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_has_queries_and_gallery_apart(name: str, tmp_path: Path, empty_cache: Path) -> None:
    table, split = open_dataset("inshop", LAYOUTS[name](tmp_path / "data"))
    for side, rows in (("train", split.train), ("query", split.query), ("gallery", split.gallery)):
        assert paths_of(table, rows) == [path for path, _, row_side in ROWS if row_side == side]
        assert len(rows) == SIDES[side]
    assert sorted([*split.query, *split.gallery]) == split.test.tolist()
    assert class_of(table) == {path: name for path, name, _ in ROWS}


def test_validation_inside_the_training_items_searches_all_among_all(tmp_path: Path) -> None:
    table, split = open_dataset("inshop", layout(tmp_path, "Img", "Eval"), "kfold", 1, 2)
    assert split.query.tolist() == split.gallery.tolist()
    used = {*paths_of(table, split.train), *paths_of(table, split.test)}
    assert used == {path for path, _, side in ROWS if side == "train"}


def test_there_is_no_closed_set(tmp_path: Path) -> None:
    with refused(layout(tmp_path, "Img", "Eval"), "id_00000001", "zero_shot"):
        open_dataset("inshop", tmp_path, "closed_set")


def open_with(rows: Rows, root: Path) -> None:
    write_list(layout(root, "Img", "Eval") / "Eval" / "list_eval_partition.txt", rows)
    open_dataset("inshop", root)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (ROWS[:-1], ["found 15 images, expected 16"]),
        ([*ROWS[:-1], *item(4, "query", 5)], ["found 4 query images", "expected 3"]),
        ([*ROWS[:-1], *item(4, "val", 5)], ["list_eval_partition.txt", "'val'"]),
        (
            [row for row in ROWS if row not in item(1, "gallery", 2)],
            ["list_eval_partition.txt", "queries but no gallery image"],
        ),
        ([*ROWS, ("img/a.jpg", "id_00000004", "")], ["list_eval_partition.txt", "line 19 has 2 columns, not 3"]),
        ([*ROWS[:-1], *item(4, "train", 5)], ["training images (zero_shot), expected 9"]),
    ],
    ids=["one too few", "other role", "unknown status", "no answer", "column missing", "test item trained on"],
)
def test_other_list_is_refused(rows: Rows, words: list[str], tmp_path: Path) -> None:
    with refused(tmp_path, *words):
        open_with(rows, tmp_path)


def test_missing_image_is_named(tmp_path: Path) -> None:
    (layout(tmp_path, "Img", "Eval") / "Img" / ROWS[0][0]).unlink()
    with refused(tmp_path / "Img" / ROWS[0][0], "image is missing"):
        open_dataset("inshop", tmp_path)


def test_missing_folder_of_an_item_is_named(tmp_path: Path) -> None:
    folder = (layout(tmp_path, "Img", "Eval") / "Img" / ROWS[0][0]).parent
    shutil.rmtree(folder)
    with refused(folder, "folder is missing"):
        open_dataset("inshop", tmp_path)


@pytest.mark.parametrize(("lost", "missing"), [("Eval", "Eval/list_eval_partition.txt"), ("Img", "img")])
def test_half_of_the_files_is_refused(lost: str, missing: str, tmp_path: Path) -> None:
    shutil.rmtree(layout(tmp_path, "Img", "Eval") / lost)
    with refused(tmp_path, f"({missing} is missing)", "img.zip"):
        open_dataset("inshop", tmp_path)


def test_without_a_folder_the_files_and_their_places_are_named(tmp_path: Path, empty_cache: Path) -> None:
    with refused(
        "list_eval_partition.txt", "img.zip", empty_cache / "downloads", "--from-archive", "mmlab.ie.cuhk.edu.hk"
    ):
        open_dataset("inshop", None)
    assert not any(name.endswith((".txt", ".zip", ".part")) for name in files_below(empty_cache))


def test_files_given_once_need_no_folder(tmp_path: Path, empty_cache: Path) -> None:
    given = layout(tmp_path / "given", "", "", packed=True)
    install(ARCHIVES, given / "list_eval_partition.txt")
    with refused("img.zip", empty_cache / "downloads"):
        open_dataset("inshop", None)
    install(ARCHIVES, given / "img.zip")
    shutil.rmtree(given)
    table, split = open_dataset("inshop", None)
    assert (len(split.train), len(split.query), len(split.gallery)) == (9, 3, 4)
    assert table.root.is_relative_to(empty_cache)


def test_papers_report_one_and_the_tens_to_fifty() -> None:
    assert DATASETS["inshop"].ks == (1, 10, 20, 30, 40, 50)
