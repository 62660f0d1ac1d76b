from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from retrieval_bench.data.archive import read_columns, read_matlab
from tests.data.data_checks import refused

WORD = st.text(st.characters(codec="ascii", exclude_categories=["Z", "C"]), min_size=1, max_size=8)


@given(
    st.lists(st.tuples(st.integers(), WORD, WORD)),
    st.sampled_from([" ", "\t", "   "]),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_written_rows_are_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, str, str]], gap: str, end: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "list.txt"
    path.write_bytes(end.join(["names", *(gap.join(map(str, row)) for row in rows), ""]).encode())
    assert read_columns(path, int, str, str, skip=1) == rows


def test_bad_line_is_named_as_an_editor_counts(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    for line, problem in (("1", "1 columns, not 3"), ("1 2", "2 columns, not 3"), ("1.0 b c", ""), ("x b c", "'x'")):
        path.write_text(f"heading\n\n1 2 3\n{line}\n")
        with refused(path, "line 4: ", problem):
            read_columns(path, int, str, str, skip=1)
    path.write_text("1  Black-footed  Albatross \n2 Crow\n", encoding="utf-8")
    assert read_columns(path, int, str) == [(1, "Black-footed  Albatross"), (2, "Crow")]


def test_matlab_cells_and_fields_of_structs(tmp_path: Path) -> None:
    rows = np.array([("a.jpg", np.uint8(3)), ("b.jpg", np.uint8(255))], dtype=[("fname", object), ("class", object)])
    names = np.array(["AM General", "C/V"], dtype=object)
    path = tmp_path / "list.mat"
    savemat(path, {"annotations": rows.reshape(1, -1), "class_names": names.reshape(1, -1), "other": 1})
    texts, files, numbers = read_matlab(path, "class_names", "annotations.fname", "annotations.class")
    assert (texts.tolist(), files.tolist(), numbers.tolist()) == (["AM General", "C/V"], ["a.jpg", "b.jpg"], [3, 255])
    for missing in ("setid", "annotations.test"):
        with refused(path, missing.split(".")[-1], "not the official file"):
            read_matlab(path, "class_names", missing)
    for share in (0.0, 0.1, 0.5, 0.95):
        savemat(path, {"labels": np.random.default_rng(0).integers(0, 255, 5_000)}, do_compression=True)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        with refused(path, "fetch it again"):
            read_matlab(path, "labels")
