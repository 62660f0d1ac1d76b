"""Tables that are refused: every message names the file, and the row or column."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from data_checks import refused
from layouts import touch

from retrieval_bench.data.catalog import open_dataset
from retrieval_bench.data.sets.table import open_listed


def write(root: Path, text: str) -> Path:
    (touch(root, *(f"{number}.jpg" for number in range(4))) / "mine.csv").write_text(text)
    return root / "mine.csv"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,class\n0.jpg,a\n", ["column 'label' is missing", "path, class"]),
        ("path;label\n0.jpg;a\n", ["column 'path' is missing", "path;label"]),
        ("path,label\n0.jpg,a\n1.jpg,\n", ["row 2 has no label"]),
        ("path,label\n0.jpg,a\n1.jpg\n", ["row 2 has no label"]),
        ("path,label\n0.jpg,a\n ,b\n", ["row 2 has no path"]),
        ("path,label\n0.jpg,a\n1.jpg,b\n0.jpg,b\n", ["row 3", "second time", "0.jpg"]),
        ("path,label\ns/0.jpg,a\ns\\0.jpg,b\n", ["row 2", "second time", "s/0.jpg"]),
        ("path,label\n0.jpg,a\n1.jpg,a\n", ["one label"]),
        ("path,label,split\n0.jpg,a,train\n1.jpg,b,dev\n", ["row 2", "'dev'"]),
        ("path,label,split,query\n0.jpg,a,train,\n1.jpg,b,test,maybe\n", ["row 2", "query", "'maybe'"]),
        ("path,label,split,gallery\n0.jpg,a,train,2\n1.jpg,b,test,1\n", ["row 1", "gallery", "'2'"]),
        ("path,label,query\n0.jpg,a,1\n1.jpg,b,0\n", ["'query'", "'split'"]),
        ("", ["not a CSV"]),
        ("path,label\n0.jpg,a\n1,5.jpg,b\n", ["line 3"]),
    ],
    ids=[
        "other columns",
        "semicolons",
        "empty label",
        "short row",
        "empty path",
        "image twice",
        "image twice, other separator",
        "one class",
        "unknown split",
        "unknown query",
        "unknown gallery",
        "flag without split",
        "empty file",
        "long row",
    ],
)
def test_table_is_refused(text: str, words: list[str], tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with refused(path, *words):
        open_dataset("table", path)


@pytest.mark.parametrize("other", ["./0.jpg", "sub/../0.jpg", "sub//1.jpg"])
def test_image_named_twice_in_two_spellings_is_refused(other: str, tmp_path: Path) -> None:
    """A query would find itself in the gallery."""
    touch(tmp_path, "sub/1.jpg")
    path = write(tmp_path, f"path,label\n0.jpg,a\nsub/1.jpg,b\n{other},c\n")
    with refused(path, "row 3", "second time"):
        open_dataset("table", path)


def test_rows_all_longer_than_the_heading_are_refused(tmp_path: Path) -> None:
    """An unquoted comma in every path; pandas would take the first piece as an index and shift the others."""
    path = write(tmp_path, "path,label\nbirds,0.jpg,wren\nbirds,1.jpg,crow\n")
    with refused(path):
        open_dataset("table", path)


@pytest.mark.parametrize("name", ["mine.csv", "mine.parquet"])
def test_file_of_another_kind_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff\xfe")
    with refused(tmp_path / name, "not a CSV or Parquet table"):
        open_dataset("table", tmp_path / name)


def test_other_columns_of_a_parquet_table_are_no_matter(tmp_path: Path) -> None:
    """Tables often hold the images' bytes, boxes or vectors too."""
    touch(tmp_path, "0.jpg", "1.jpg")
    columns = {
        "path": ["0.jpg", "1.jpg"],
        "label": ["a", "b"],
        "bytes": [b"\xff\xd8\xff", b"\xfe"],
        "box": [[1, 2], [3, 4]],
    }
    pd.DataFrame(columns).to_parquet(tmp_path / "mine.parquet")
    assert open_dataset("table", tmp_path / "mine.parquet")[0].class_names == ("a", "b")


def test_gap_in_whole_number_labels_is_a_missing_label(tmp_path: Path) -> None:
    pd.DataFrame({"path": ["0.jpg", "1.jpg", "2.jpg"], "label": [1, None, 2]}).to_parquet(tmp_path / "mine.parquet")
    with refused(tmp_path / "mine.parquet", "row 2 has no label"):
        open_listed(tmp_path / "mine.parquet")


def test_fractional_labels_are_kept_or_refused_in_one_line(tmp_path: Path) -> None:
    """A column of measurements is hardly meant as classes, but CSV takes it."""
    columns = {"path": ["0.jpg", "1.jpg"], "label": [0.5, 2.0]}
    pd.DataFrame(columns).to_csv(tmp_path / "mine.csv", index=False)
    pd.DataFrame(columns).to_parquet(tmp_path / "mine.parquet")
    assert open_listed(tmp_path / "mine.csv").class_names == open_listed(tmp_path / "mine.parquet").class_names


@pytest.mark.parametrize("word", ["image is missing", "is empty"])
def test_bad_image_is_refused_when_the_table_is_opened(word: str, tmp_path: Path) -> None:
    path = write(tmp_path, "path,label\n0.jpg,a\n1.jpg,b\n")
    open_dataset("table", path)
    if word == "is empty":
        (tmp_path / "1.jpg").write_bytes(b"")
    else:
        (tmp_path / "1.jpg").unlink()
    with refused(tmp_path / "1.jpg", word):
        open_dataset("table", path)


@pytest.mark.parametrize("split", ["train", ""], ids=["all train", "all left out"])
def test_split_without_a_side_is_refused(split: str, tmp_path: Path) -> None:
    path = write(
        tmp_path, "path,label,split\n" + "".join(f"{number}.jpg,{number % 2},{split}\n" for number in range(4))
    )
    with refused(tmp_path, "zero_shot needs images on all sides"):
        open_dataset("table", path)


@pytest.mark.parametrize("root", [None, "folder"])
def test_a_file_is_asked_for(root: str | None, tmp_path: Path) -> None:
    with refused("--data-root FILE", "path,label"):
        open_dataset("table", tmp_path if root else None)
