from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from data_checks import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import class_of, paths_of, touch

from retrieval_bench.data.catalog import open_dataset
from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.sets.table import open_listed
from retrieval_bench.data.splits import Split

Columns = dict[str, list[Any]]
PATHS = [f"{number}.jpg" for number in range(8)]
CLASSES = {"path": PATHS, "label": ["wren", "crow", "finch", "robin"] * 2}
DISJOINT = CLASSES | {"split": ["test", "train", "test", "train"] * 2}


def save(root: Path, columns: Columns, kind: str = "csv") -> Path:
    """The table, and the images that it names."""
    frame = pd.DataFrame(columns)
    path = touch(root, *columns["path"]) / f"mine.{kind}"
    if kind == "csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return path


def write(root: Path, text: str, images: list[str] | None = None, encoding: str = "utf-8") -> Path:
    (touch(root, *(images or PATHS)) / "mine.csv").write_text(text, encoding=encoding)
    return root / "mine.csv"


def names(opened: tuple[ImageTable, Split]) -> tuple[list[str], list[str], list[str]]:
    """Paths of training, query and gallery rows."""
    table, split = opened
    return paths_of(table, split.train), paths_of(table, split.query), paths_of(table, split.gallery)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_labels_alone_give_half_of_the_classes_by_name(kind: str, tmp_path: Path) -> None:
    table, split = open_dataset("table", save(tmp_path, CLASSES, kind))
    assert table.class_names == ("crow", "finch", "robin", "wren")
    assert class_of(table) == dict(zip(CLASSES["path"], CLASSES["label"], strict=True))
    tested = ["0.jpg", "3.jpg", "4.jpg", "7.jpg"]
    assert names((table, split)) == (["1.jpg", "2.jpg", "5.jpg", "6.jpg"], tested, tested)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_disjoint_split_is_the_zero_shot_split(kind: str, tmp_path: Path) -> None:
    table, split = open_dataset("table", save(tmp_path, DISJOINT, kind))
    tested = ["0.jpg", "2.jpg", "4.jpg", "6.jpg"]
    assert names((table, split)) == (["1.jpg", "3.jpg", "5.jpg", "7.jpg"], tested, tested)
    assert table.class_names == ("crow", "robin", "finch", "wren")
    with refused("finch", "zero_shot"):
        open_dataset("table", tmp_path / f"mine.{kind}", "closed_set")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_all_columns_give_queries_gallery_and_both(kind: str, tmp_path: Path) -> None:
    flags = {"query": [1, 0, 1, 0, 0, 1, 0, 0], "gallery": [0, 1, 1, 0, 1, 0, 1, 0]}
    train, query, gallery = names(open_dataset("table", save(tmp_path, DISJOINT | flags, kind)))
    assert train == ["1.jpg", "3.jpg", "5.jpg", "7.jpg"]
    assert query == ["0.jpg", "2.jpg"]
    assert gallery == ["2.jpg", "4.jpg", "6.jpg"]


def test_one_flag_leaves_the_other_role_to_all_tested_rows(tmp_path: Path) -> None:
    _, query, gallery = names(
        open_dataset("table", save(tmp_path, DISJOINT | {"query": ["yes", "", "no", "", "TRUE", "", "0", ""]}))
    )
    assert query == ["0.jpg", "4.jpg"]
    assert gallery == ["0.jpg", "2.jpg", "4.jpg", "6.jpg"]


def test_row_in_neither_role_and_row_without_split_are_left_out(tmp_path: Path) -> None:
    columns = DISJOINT | {"query": [0, 0, 1, 0, 1, 0, 1, 0], "gallery": [0, 0, 1, 0, 1, 0, 1, 0]}
    columns["split"] = [*DISJOINT["split"][:7], ""]
    train, query, gallery = names(open_dataset("table", save(tmp_path, columns)))
    assert (train, query, gallery) == (
        ["1.jpg", "3.jpg", "5.jpg"],
        ["2.jpg", "4.jpg", "6.jpg"],
        ["2.jpg", "4.jpg", "6.jpg"],
    )


def test_shared_classes_are_a_closed_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path, CLASSES | {"split": ["train"] * 4 + ["test"] * 4})
    train, query, gallery = names(open_dataset("table", path, "closed_set"))
    assert (train, query, gallery) == (PATHS[:4], PATHS[4:], PATHS[4:])
    assert "share classes" in capsys.readouterr().err
    assert names(open_dataset("table", path))[0] == ["1.jpg", "2.jpg", "5.jpg", "6.jpg"]


def test_parquet_flags_may_be_booleans_with_gaps(tmp_path: Path) -> None:
    columns = DISJOINT | {"split": ["test", "train", "test", "train", "test", "train", "test", None]}
    _, query, gallery = names(
        open_dataset("table", save(tmp_path, columns | {"query": [True, None, False, None] * 2}, "parquet"))
    )
    assert (query, gallery) == (["0.jpg", "4.jpg"], ["0.jpg", "2.jpg", "4.jpg", "6.jpg"])


def test_whole_number_labels_are_the_same_in_both_kinds(tmp_path: Path) -> None:
    columns = {"path": PATHS, "label": [3, 11, 2, 1] * 2}
    csv, parquet = (open_dataset("table", save(tmp_path, columns, kind))[0] for kind in ("csv", "parquet"))
    assert (
        class_of(csv)
        == class_of(parquet)
        == {path: str(label) for path, label in zip(PATHS, columns["label"], strict=True)}
    )
    assert csv.class_names == parquet.class_names


def test_quoted_commas_byte_order_mark_and_blanks_are_understood(tmp_path: Path) -> None:
    text = '"path","label","split"\n"a, b.jpg","wren, small",TRAIN\n0.jpg, "wren, small" ,train\n 1.jpg ,crow, Test\n2.jpg,crow,test\n'
    opened = open_dataset("table", write(tmp_path, text, ["a, b.jpg", *PATHS], "utf-8-sig"))
    assert opened[0].class_names == ("wren, small", "crow")
    assert names(opened) == (["a, b.jpg", "0.jpg"], ["1.jpg", "2.jpg"], ["1.jpg", "2.jpg"])


def test_windows_separators_and_line_ends_are_understood(tmp_path: Path) -> None:
    text = "path,label\r\nsub\\0.jpg,a\r\nsub\\1.jpg,b\r\n"
    assert open_dataset("table", write(tmp_path, text, ["sub/0.jpg", "sub/1.jpg"]))[0].paths == (
        "sub/0.jpg",
        "sub/1.jpg",
    )


def test_label_that_reads_like_a_missing_value_is_a_label(tmp_path: Path) -> None:
    assert open_dataset("table", write(tmp_path, "path,label\n0.jpg,NA\n1.jpg,null\n"))[0].class_names == ("NA", "null")


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from(["train", "test", ""]), st.booleans(), st.booleans()),
        min_size=2,
    )
)
def test_flags_and_split_are_kept_row_by_row(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, bool, bool]]
) -> None:
    """The closed-set roles are what the table says; nothing is asked of the images."""
    labels = [label for label, *_ in rows]
    if len(set(labels)) < 2:
        return
    path = tmp_path_factory.getbasetemp() / "property.csv"
    lines = [
        f"{row}.jpg,{label},{split},{int(query)},{int(gallery)}"
        for row, (label, split, query, gallery) in enumerate(rows)
    ]
    path.write_text("\n".join(["path,label,split,query,gallery", *lines]))
    table = open_listed(path)
    assert [table.class_names[label] for label in table.labels] == labels
    assert table.sides is not None
    for side, (_, split, query, gallery) in zip(table.sides, rows, strict=True):
        assert (side == "train") == (split == "train")
        assert (side in ("test", "query")) == (split == "test" and query)
        assert (side in ("test", "gallery")) == (split == "test" and gallery)
