from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_checks import refused
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from retrieval_bench.data.lists import read_columns, read_matlab, whole_numbers

WORD = st.text(st.characters(codec="ascii", exclude_categories=["Z", "C"]), min_size=1, max_size=8)


@given(
    st.lists(st.tuples(WORD, WORD, WORD)), st.sampled_from([" ", "\t", "   "]), st.sampled_from(["\n", "\r\n", "\n\n"])
)
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]], gap: str, end: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "list.txt"
    path.write_bytes(end.join(["number of images", "the names", *(gap.join(row) for row in rows), ""]).encode())
    skip = 3 if end == "\n\n" else 2
    assert read_columns(path, columns=3, skip=skip) == [list(row) for row in rows]


def test_the_last_column_may_hold_blanks(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("1  Black-footed  Albatross \n2 Crow\n", encoding="utf-8")
    assert read_columns(tmp_path / "list.txt", columns=2) == [["1", "Black-footed  Albatross"], ["2", "Crow"]]


@pytest.mark.parametrize(("line", "found"), [("1", 1), ("1 2", 2)])
def test_short_line_is_named_as_an_editor_counts(line: str, found: int, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"heading\n\n1 2 3\n{line}\n")
    with refused(tmp_path / "list.txt", f"line 4 has {found} columns, not 3"):
        read_columns(tmp_path / "list.txt", columns=3, skip=1)


def test_missing_text_file_is_named(tmp_path: Path) -> None:
    with refused(tmp_path / "list.txt", "file is missing"):
        read_columns(tmp_path / "list.txt", columns=2)


def test_missing_matlab_file_is_named(tmp_path: Path) -> None:
    with refused(tmp_path / "list.mat", "file is missing"):
        read_matlab(tmp_path / "list.mat", "labels")


def test_matlab_structs_become_objects_and_cells_become_texts(tmp_path: Path) -> None:
    rows = np.array([("a.jpg", np.uint8(3)), ("b.jpg", np.uint8(255))], dtype=[("fname", object), ("class", object)])
    names = np.array(["AM General", "C/V"], dtype=object)
    savemat(
        tmp_path / "list.mat", {"annotations": rows.reshape(1, -1), "class_names": names.reshape(1, -1), "other": 1}
    )
    texts, structs = read_matlab(tmp_path / "list.mat", "class_names", "annotations")
    assert texts.tolist() == ["AM General", "C/V"]
    assert [(row.fname, int(getattr(row, "class"))) for row in structs] == [("a.jpg", 3), ("b.jpg", 255)]


def test_missing_variable_is_named(tmp_path: Path) -> None:
    savemat(tmp_path / "list.mat", {"labels": [1, 2]})
    with refused(tmp_path / "list.mat", "'setid'"):
        read_matlab(tmp_path / "list.mat", "labels", "setid")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
def test_truncated_matlab_file_is_refused(share: float, tmp_path: Path) -> None:
    path = tmp_path / "list.mat"
    savemat(path, {"labels": np.random.default_rng(0).integers(0, 255, 5_000)}, do_compression=True)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with refused(path, "fetch it again"):
        read_matlab(path, "labels")


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><title>moved</title>" * 20, b"\x89PNG" * 100, bytes(range(256)) * 4]
)
def test_other_file_is_no_matlab_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "list.mat").write_bytes(content)
    with refused(tmp_path / "list.mat", "fetch it again"):
        read_matlab(tmp_path / "list.mat", "labels")


def test_whole_numbers_are_read_and_others_refused() -> None:
    assert whole_numbers(Path("list.txt"), ["7", "007", "-1"]) == [7, 7, -1]
    for strange in ("one", "1.0", ""):
        with refused("list.txt", repr(strange)):
            whole_numbers(Path("list.txt"), ["1", strange])
