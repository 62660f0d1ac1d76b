"""Your own images: a folder per class, or a table; WikiArt and Sketches take either and need a split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from retrieval_bench.data.catalog import open_dataset, open_table
from retrieval_bench.data.dataset import Counts
from retrieval_bench.data.sets.table import open_image_list
from retrieval_bench.data.splits import Split
from retrieval_bench.data.table import ImageTable
from tests.data.data_checks import refused
from tests.data.sets.layouts import Miniature, class_of, pack, paths_of, touch


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four classes of two images, written in no order."""
    paths = (f"{name}/{image}.jpg" for name in ("wren", "crow", "robin", "finch") for image in (2, 1))
    return touch(tmp_path / "mine", *paths)


def test_classes_and_images_are_ordered_by_name(root: Path) -> None:
    """Hidden and foreign files are passed over, also in a hidden folder; the odd class goes to the test side."""
    hidden = ("crow/.DS_Store", "crow/._1.jpg", "crow/notes.txt", ".git/a.jpg", "readme.jpg", "crow/.thumbnails/1.jpg")
    touch(root, "zebra/1.jpg", "zebra/2019/may/2.JPEG", *hidden)
    (root / "crow" / "old.jpg").mkdir()
    table, split = open_dataset("folder", root.rename(root.with_name(".hidden")))
    assert table.class_names == ("crow", "finch", "robin", "wren", "zebra")
    named = [f"{name}/{image}.jpg" for name in table.class_names[:4] for image in (1, 2)]
    assert table.paths == (*named, "zebra/1.jpg", "zebra/2019/may/2.JPEG")
    assert table.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert (split.train.tolist(), split.test.tolist()) == ([0, 1, 2, 3], [4, 5, 6, 7, 8, 9])
    with refused(table.root, "no official training and test images"):
        open_dataset("folder", table.root, "closed_set")


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["zebra/.keep"], "zebra: class has 0 image(s)"),
        (["zebra/only.png"], "zebra: class has 1 image(s)"),
        (["train/a/1.jpg", "test/a/1.jpg", "val/a/1.jpg"], "holds test, train, val"),
        (["train/a/1.jpg"], "holds train"),
        ([], "has 0 class"),
        ([f"c{number}/{image}.png" for number in range(3) for image in "ab"], "has 3 class"),
    ],
)
def test_folders_that_cannot_be_split_are_refused(paths: list[str], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    with refused(touch(folder, *paths), message):
        open_dataset("folder", folder)


def test_a_folder_is_needed(root: Path) -> None:
    with refused("--data-root FOLDER"):
        open_dataset("folder", None)
    with refused(touch(root, "images.zip") / "images.zip", "not a tar or zip archive"):
        open_dataset("folder", root / "images.zip")


@pytest.mark.parametrize("name", ["mine.zip", "mine.tgz"])
def test_archive_of_the_folder_is_the_same_data(name: str, root: Path, empty_cache: Path) -> None:
    """As a Mac packs it, with what it leaves behind."""
    expected = open_table("folder", root)
    touch(root.parent, "__MACOSX/mine/crow/._1.jpg", "mine/crow/.DS_Store", "mine/crow/._1.jpg")
    table = open_table("folder", pack(root.parent / "packed" / name, root.parent, "mine", "__MACOSX"))
    assert table.root.is_relative_to(empty_cache)
    assert (table.paths, table.fingerprint()) == (expected.paths, expected.fingerprint())


def write_sides(root: Path, train: str, tested: str, test: str = "test") -> Path:
    """Two images of each of the classes (by letter) below ``train`` and the folder called `test`."""
    for side, names in (("train", train), (test, tested)):
        touch(root / side, *(f"{name}/{image}.jpg" for name in names for image in range(2)))
    return root


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation"])
def test_disjoint_train_and_test_folders_are_the_zero_shot_split(test: str, tmp_path: Path) -> None:
    table, split = open_dataset("folder", write_sides(tmp_path, "bdf", "ac", test))
    assert table.class_names == ("b", "d", "f", "a", "c")
    assert {path.split("/")[0] for path in paths_of(table, split.train)} == {"train"}
    assert paths_of(table, split.test) == [f"{test}/{name}/{image}.jpg" for name in "ac" for image in range(2)]
    with refused(tmp_path, "'a'", "zero_shot"):
        open_dataset("folder", tmp_path, "closed_set")


def test_train_and_test_folders_with_the_same_classes_are_a_closed_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, split = open_dataset("folder", write_sides(tmp_path, "abcde", "abcd"), "closed_set")
    assert {path.split("/")[0] for path in paths_of(table, split.train)} == {"train"}
    assert {path.split("/")[0] for path in paths_of(table, split.query)} == {"test"}
    assert (len(split.train), len(split.test)) == (10, 8)
    assert "share classes" in capsys.readouterr().err
    table, split = open_dataset("folder", tmp_path)
    assert {path.split("/")[1] for path in paths_of(table, split.train)} == {"a", "b"}
    touch(tmp_path, "other/1.jpg", "other/2.jpg")
    touch(tmp_path, "another/1.jpg", "another/2.jpg")
    assert open_dataset("folder", tmp_path)[0].class_names == ("another", "other", "test", "train")


Columns = dict[str, list[Any]]
PATHS = [f"{number}.jpg" for number in range(8)]
CLASSES = {"path": PATHS, "label": ["wren", "crow", "finch", "robin"] * 2}
DISJOINT = CLASSES | {"split": ["test", "train", "test", "train"] * 2}


def save(root: Path, columns: Columns, kind: str = "csv") -> Path:
    """The table, and the images that it names."""
    path = touch(root, *columns["path"]) / f"mine.{kind}"
    frame = pd.DataFrame(columns)
    frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
    return path


def write(root: Path, text: str, images: list[str] | None = None, encoding: str = "utf-8") -> Path:
    (touch(root, *(images or PATHS)) / "mine.csv").write_text(text, encoding=encoding)
    return root / "mine.csv"


def sides(opened: tuple[ImageTable, Split]) -> tuple[str, ...]:
    """Numbers of the training, query and gallery images."""
    table, split = opened
    return tuple("".join(table.paths[row][0] for row in rows) for rows in (split.train, split.query, split.gallery))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_of_a_table(kind: str, tmp_path: Path) -> None:
    table, split = open_dataset("table", save(tmp_path, CLASSES, kind))
    assert table.class_names == ("crow", "finch", "robin", "wren")
    assert class_of(table) == dict(zip(PATHS, CLASSES["label"], strict=True))
    assert sides((table, split)) == ("1256", "0347", "0347")
    opened = open_dataset("table", save(tmp_path, DISJOINT, kind))
    assert opened[0].class_names == ("crow", "robin", "finch", "wren")
    assert sides(opened) == ("1357", "0246", "0246")
    with refused("finch", "zero_shot"):
        open_dataset("table", tmp_path / f"mine.{kind}", "closed_set")
    flags = {"query": [1, 0, 1, 0, 0, 1, 0, 0], "gallery": [0, 1, 1, 0, 1, 0, 1, 0]}
    assert sides(open_dataset("table", save(tmp_path, DISJOINT | flags, kind))) == ("1357", "02", "246")
    numbers = save(tmp_path, {"path": PATHS, "label": [3, 11, 2, 1] * 2}, kind)
    assert open_dataset("table", numbers)[0].class_names == ("1", "11", "2", "3")


def test_rows_without_role_or_split_are_left_out(tmp_path: Path) -> None:
    one = DISJOINT | {"query": ["yes", "", "no", "", "TRUE", "", "0", ""]}
    assert sides(open_dataset("table", save(tmp_path, one))) == ("1357", "04", "0246")
    none = DISJOINT | {name: [0, 0, 1, 0, 1, 0, 1, 0] for name in ("query", "gallery")}
    none["split"] = [*DISJOINT["split"][:7], ""]
    assert sides(open_dataset("table", save(tmp_path, none))) == ("135", "246", "246")
    gaps = DISJOINT | {"split": [*DISJOINT["split"][:7], None], "query": [True, None, False, None] * 2}
    assert sides(open_dataset("table", save(tmp_path, gaps, "parquet"))) == ("135", "04", "0246")


def test_spellings_of_csv(tmp_path: Path) -> None:
    lines = ['"path","label","split"', '"a, b.jpg","wren, small",TRAIN', '0.jpg, "wren, small" ,train']
    text = "\n".join([*lines, " 1.jpg ,crow, Test", "2.jpg,crow,test"])
    opened = open_dataset("table", write(tmp_path, text, ["a, b.jpg", *PATHS], "utf-8-sig"))
    assert opened[0].class_names == ("wren, small", "crow")
    assert sides(opened) == ("a0", "12", "12")
    text = "path,label\r\nsub\\0.jpg,NA\r\nsub\\1.jpg,null\r\n"
    table = open_dataset("table", write(tmp_path, text, ["sub/0.jpg", "sub/1.jpg"]))[0]
    assert class_of(table) == {"sub/0.jpg": "NA", "sub/1.jpg": "null"}


def test_other_columns_and_fractional_labels_of_parquet(tmp_path: Path) -> None:
    """Tables often hold the images' bytes, boxes or vectors too."""
    other = {"path": PATHS[:2], "label": [0.5, 2.0], "bytes": [b"\xff\xd8\xff", b"\xfe"], "box": [[1, 2], [3, 4]]}
    parquet, csv = (open_dataset("table", save(tmp_path, other, kind))[0] for kind in ("parquet", "csv"))
    assert parquet.class_names == csv.class_names
    gap = save(tmp_path, {"path": PATHS[:3], "label": [1, None, 2]}, "parquet")
    with refused(gap, "row 2 has no label"):
        open_image_list(gap)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,class\n0.jpg,a\n", ["column 'label' is missing", "path, class"]),
        ("path;label\n0.jpg;a\n", ["column 'path' is missing", "path;label"]),
        ("path,label\n0.jpg,a\n1.jpg,\n", ["row 2 has no label"]),
        ("path,label\n0.jpg,a\n1.jpg\n", ["row 2 has no label"]),
        ("path,label\n0.jpg,a\n ,b\n", ["row 2 has no path"]),
        ("path,label\n0.jpg,a\n1.jpg,b\n0.jpg,b\n", ["row 3", "second time", "0.jpg"]),
        ("path,label\n0.jpg,a\n1.jpg,b\n./0.jpg,c\n", ["row 3", "second time"]),
        ("path,label\n0.jpg,a\n1.jpg,b\nsub/../0.jpg,c\n", ["row 3", "second time"]),
        ("path,label\n0.jpg,a\n1.jpg,b\n{folder}/0.jpg,c\n", ["row 3", "second time"]),
        ("path,label,Label\n0.jpg,a,b\n1.jpg,b,c\n", ["column 'label' is there twice"]),
        ("path,label,label\n0.jpg,a,b\n1.jpg,b,c\n", ["column 'label' is there twice"]),
        ("Path, LABEL ,Split\n0.jpg,a,dev\n1.jpg,b,test\n", ["row 1 has split 'dev'"]),
        ("path,label\ns/0.jpg,a\ns\\0.jpg,b\n", ["row 2", "second time", "s/0.jpg"]),
        ("path,label\n0.jpg,a\n1.jpg,a\n", ["one label"]),
        ("path,label,split\n0.jpg,a,train\n1.jpg,b,dev\n", ["row 2", "'dev'"]),
        ("path,label,split,query\n0.jpg,a,train,\n1.jpg,b,test,maybe\n", ["row 2", "query", "'maybe'"]),
        ("path,label,split,gallery\n0.jpg,a,train,2\n1.jpg,b,test,1\n", ["row 1", "gallery", "'2'"]),
        ("path,label,query\n0.jpg,a,1\n1.jpg,b,0\n", ["'query'", "'split'"]),
        ("", ["not a CSV"]),
        ("path,label\n0.jpg,a\n1,5.jpg,b\n", ["line 3"]),
        ("path,label\nbirds,0.jpg,wren\nbirds,1.jpg,crow\n", ["more columns than the heading"]),
        ("path,label,split\n0.jpg,0,train\n1.jpg,1,train\n", ["zero_shot needs images on all sides"]),
        ("path,label,split\n0.jpg,0,\n1.jpg,1,\n", ["zero_shot needs images on all sides"]),
        ("path,label\n0.jpg,a\nmissing.jpg,b\n", ["missing.jpg: image is missing"]),
        ("path,label\n0.jpg,a\nempty.jpg,b\n", ["empty.jpg: image file is empty"]),
    ],
)
def test_bad_table_is_refused(text: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    path = write(tmp_path, text.replace("{folder}", tmp_path.as_posix()))
    with refused(tmp_path, *words):
        open_dataset("table", path)


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    for name in ("mine.csv", "mine.parquet"):
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff\xfe")
        with refused(tmp_path / name, "not a CSV or Parquet table"):
            open_dataset("table", tmp_path / name)
    for root in (None, tmp_path):
        with refused("--data-root FILE", "path,label"):
            open_dataset("table", root)


@pytest.mark.parametrize("name", ["wikiart", "sketches"])
def test_folders_or_a_table_with_a_split(name: str, tmp_path: Path, miniature: Miniature) -> None:
    root = write_sides(tmp_path / "sides", "abcd", "abcd")
    with refused(root, "16 images, expected"):
        open_table(name, root)
    miniature(name, Counts(4, 16, {"closed_set": {"train": 8, "test": 8}}))
    paths = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*.jpg"))]
    rows = [f"{path},{path.split('/')[1]},{path.split('/')[0]}\n" for path in paths]
    (root / "list.csv").write_text("path,label,split\n" + "".join(rows))
    for given_root in (root, root / "list.csv"):
        _, split = open_dataset(name, given_root, "closed_set")
        assert (len(split.train), len(split.test), len(split.train_classes)) == (8, 8, 4)
    with refused("nothing says which images train", root / "train"):
        open_table(name, root / "train")
    with refused("has no download", name):
        open_table(name, None)
