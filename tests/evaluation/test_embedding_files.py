"""Embeddings and labels from files: every accepted form gives the same arrays, every broken one gives one line."""

from __future__ import annotations

import builtins
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from retrieval_bench.errors import UserError
from retrieval_bench.evaluation.files import read_embeddings, read_labels, write_frame
from tests.data.data_checks import files_below, refused

ROWS = np.random.default_rng(0).normal(size=(6, 4))
LABELS = np.array([0, 0, 1, 1, 2, 2])
TEXT = np.array(["blue tit", "blue tit", "grünfink", "grünfink", "a,b", "a,b"])
Make = Callable[[Path], Path]


def table(path: Path, **columns: Any) -> Path:
    frame = pd.DataFrame(columns)
    write = {".csv": partial(frame.to_csv, index=False), ".feather": frame.to_feather}
    write.get(path.suffix.lower(), frame.to_parquet)(path)
    return path


def text(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def npy(path: Path, array: Any) -> Path:
    np.save(path, array, allow_pickle=True)
    return path


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def forms(folder: Path, labels: np.ndarray) -> dict[str, tuple[Path, Path | None]]:
    """The same embeddings and labels in every accepted form."""
    lines, numbers = text(folder / "l.txt", "".join(f"{label}\n" for label in labels)), npy(folder / "l.npy", labels)
    columns = {"name": ["x"] * 6, "label": labels, **{f"d{i}": ROWS[:, i] for i in (2, 0, 3, 1)}}
    return {
        "npz": (npz(folder / "e.npz", embeddings=ROWS, labels=labels), None),
        "npy and npy": (npy(folder / "e.npy", ROWS), numbers),
        "npy and text": (npy(folder / "e.npy", ROWS), lines),
        "lists": (table(folder / "lists.parquet", label=labels, embedding=list(ROWS)), None),
        "columns": (table(folder / "columns.parquet", **columns), None),
        "CSV": (table(folder / "columns.CSV", **columns, label_id=LABELS, is_new=LABELS > 0), None),
        "Feather": (table(folder / "lists.feather", label=labels, embedding=list(ROWS)), None),
        "capitals": (table(folder / "lists.PARQUET", label=pd.Categorical(labels), embedding=list(ROWS)), None),
        "Parquet and npy": (table(folder / "alone.parquet", embedding=list(ROWS)), numbers),
    }


@pytest.mark.parametrize("labels", [LABELS, TEXT], ids=["numbers", "text"])
def test_every_form_gives_the_same_arrays(labels: np.ndarray, tmp_path: Path) -> None:
    for form, files in forms(tmp_path, labels).items():
        found = read_embeddings(*files)
        assert np.array_equal(found["embeddings"], ROWS), form
        assert found["labels"].astype(labels.dtype).tolist() == labels.tolist(), form
        assert isinstance(found["embeddings"], np.memmap) == form.startswith("npy"), "mapped, not read"


@pytest.mark.parametrize("first", [0, 1])
def test_a_series_of_columns_is_read_in_its_order_and_other_columns_are_named(
    first: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = np.random.default_rng(1).normal(size=(6, 12))
    series = {f"e{number + first}": rows[:, number] for number in np.random.default_rng(0).permutation(12)}
    path = table(tmp_path / "e.parquet", image_id=np.arange(6) * 1000, **series, label=LABELS, label_id=LABELS)
    assert np.array_equal(read_embeddings(path)["embeddings"], rows)
    expected = f"{path}: 12 dimensions, e{first} to e{first + 11}; left out: image_id, label_id\n"
    assert tuple(capfd.readouterr()) == ("", expected)
    assert read_embeddings(table(path, label=LABELS, e0=rows[:, 0]))["embeddings"].shape == (6, 1)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (["1", "1.0", "-2", "-2.", "3", "3.00"], [1, 1, -2, -2, 3, 3]),
        (["a ", " a", "a", "b", " b", "b "], ["a", "a", "a", "b", "b", "b"]),
        (["01", "1", "1e1", "10", "2", "2"], ["01", "1", "1e1", "10", "2", "2"]),
        ([f"{2**64}", f"{2**64 + 1}"] * 3, [f"{2**64}", f"{2**64 + 1}"] * 3),
        (["9007199254740993.0", "9007199254740992.0"] * 3, [2**53 + 1, 2**53] * 3),
        (["0.10000000000000001", "0.1"] * 3, ["0.10000000000000001", "0.1"] * 3),
        (["NA", "None", "nan"] * 2, ["NA", "None", "nan"] * 2),
    ],
    ids=["whole numbers", "spaces", "ids", "huge", "huge real", "decimals", "words"],
)
def test_labels_of_a_csv_file_are_what_is_written(written: list[str], read: list[Any], tmp_path: Path) -> None:
    content = "label, e0, e1\n" + "".join(f"{label}, {row}, 1\n" for row, label in enumerate(written))
    assert read_embeddings(text(tmp_path / "e.csv", content))["labels"].tolist() == read


def test_a_column_that_is_the_index_is_read(tmp_path: Path) -> None:
    frame = pd.DataFrame({"label": LABELS, **{f"e{i}": ROWS[:, i] for i in range(4)}})
    for index in (["label"], ["e0"], ["label", "e0"]):
        frame.set_index(index).to_parquet(tmp_path / "e.parquet")
        found = read_embeddings(tmp_path / "e.parquet")
        assert np.array_equal(found["embeddings"], ROWS)
        assert found["labels"].tolist() == LABELS.tolist()


def test_nothing_advises_to_load_unsafely(tmp_path: Path) -> None:
    for name in ("e.pkl", "e.npz", "e.npy", "e", "e.CSV", "e.feather"):
        with pytest.raises(UserError) as caught:
            read_embeddings(text(tmp_path / name, pickle.dumps(np.array([{}], dtype=object))))
        assert "allow_pickle" not in str(caught.value)


@pytest.mark.parametrize("content", ["a\nb\nc d\n", "a\nb\nc d", "a\r\nb \r\n c d\r\n", b"\xef\xbb\xbfa\nb\nc d\n"])
def test_labels_are_lines_of_text(content: str | bytes, tmp_path: Path) -> None:
    assert read_labels(text(tmp_path / "labels.txt", content)).tolist() == ["a", "b", "c d"]


@pytest.mark.parametrize("name", ["e.npz", "E.NPZ", "embeddings.zip", "embeddings"])
def test_queries_of_an_npz_file_are_read_whatever_it_is_called(name: str, tmp_path: Path) -> None:
    given = {"embeddings": ROWS, "labels": LABELS, "query_embeddings": ROWS[:2], "query_labels": LABELS[:2]}
    path = npz(tmp_path / "e.npz", **given, unrelated=np.ones(3)).rename(tmp_path / name)
    found = read_embeddings(path)
    assert found.keys() == given.keys()
    assert all(np.array_equal(found[each], values) for each, values in given.items())
    again = read_embeddings(path, text(tmp_path / "l.txt", "\n".join(TEXT)))
    assert (again["labels"].tolist(), again["query_labels"].tolist()) == (TEXT.tolist(), [0, 0])


def damaged(path: Path, half: bool = False) -> Path:
    """The same file with one byte of the first array's numbers turned around, or its first half."""
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    return text(path, path.read_bytes()[: len(content) // 2] if half else bytes(content))


def parquet(**columns: Any) -> Make:
    return lambda folder: table(folder / "e.parquet", **columns)


def columns(*names: str) -> Make:
    return lambda folder: table(folder / "e.parquet", **dict.fromkeys(names, LABELS))


BROKEN: dict[str, tuple[Make, str]] = {
    "missing npz": (lambda folder: folder / "e.npz", "no such file"),
    "missing Parquet": (lambda folder: folder / "e.parquet", "no such file"),
    "folder": (lambda folder: folder, "Is a directory"),
    "empty Parquet": (lambda folder: text(folder / "e.parquet", ""), "not a Parquet file"),
    "text": (
        lambda folder: text(folder / "e.txt", "label,d0\n1,2\n"),
        "plain arrays as .npz, .npy, .parquet, .feather",
    ),
    "empty": (lambda folder: text(folder / "e", ""), "not an .npz, .npy, .parquet, .feather or .csv file"),
    "empty CSV": (lambda folder: text(folder / "e.csv", ""), "not a CSV file"),
    "CSV that is none": (lambda folder: text(folder / "e.csv", b"\xff\x00,"), "e.csv: "),
    "empty Feather": (lambda folder: text(folder / "e.feather", ""), "not a Feather file"),
    "CSV with a column twice": (
        lambda folder: text(folder / "e.csv", "label,e0,e1,e1\n1,2,3,4\n"),
        "'e1' is there twice",
    ),
    "CSV without a label": (lambda folder: text(folder / "e.csv", "label,d0\n1,2\n,3\n"), "row 2 has no label"),
    "pickle": (lambda folder: text(folder / "e.pkl", pickle.dumps({})), "can run code"),
    "pickle of another name": (lambda folder: text(folder / "e.npz", pickle.dumps({})), "not a file of plain arrays"),
    "two series": (columns("label", "img_0", "img_1", "txt_0", "txt_1"), "img_0... (2) and txt_0... (2): keep one"),
    "a number missing": (columns("label", "e0", "e1", "e3"), "column 'e2' is missing or holds no numbers"),
    "numbers from 5": (columns("label", "e5", "e6"), "column 'e1' is missing"),
    "a number twice": (columns("label", "e1", "e01"), "'e1' and 'e01' have one number"),
    "no numbers in the last": (parquet(label=LABELS, e0=LABELS, e1=LABELS, e2=["x"] * 6), "column 'e2' is missing or"),
    "no numbers in the first": (
        parquet(label=LABELS, e0=[True] * 6, e1=LABELS, e2=LABELS),
        "column 'e0' is missing or",
    ),
    "CSV without a heading": (
        lambda folder: text(folder / "e.csv", f"0.5,0.{10**15},0.7\n0,1,2\n"),
        "'0.1' is missing",
    ),
    "CSV with semicolons": (lambda folder: text(folder / "e.csv", "label;e0;e1\n1;2,5;3,5\n"), "separated by ';'"),
    "CSV with tabs": (lambda folder: text(folder / "e.csv", "label\te0\n1\t2\n"), "separated by '\\t'"),
    "CSV with longer rows": (lambda folder: text(folder / "e.csv", "label,e0,e1\n1,2,3,4\n"), "than the heading"),
    "no series": (columns("label", "width", "height"), "no numbered series of columns such as e0, e1, ... (numbers"),
    "truncated npz": (lambda folder: damaged(npz(folder / "e.npz", embeddings=ROWS, labels=[1]), True), "not an .npz"),
    "truncated npy": (lambda folder: damaged(npy(folder / "e.npy", ROWS), True), "not an .npz"),
    "truncated Parquet": (lambda folder: damaged(parquet(embedding=list(ROWS))(folder), True), "not a Parquet file"),
    "damaged npz": (lambda folder: damaged(npz(folder / "e.npz", embeddings=ROWS, labels=LABELS)), "not an .npz"),
    "objects": (
        lambda folder: npz(folder / "e.npz", embeddings=np.array([{}], object), labels=[1]),
        "text labels with",
    ),
    "npz without labels": (lambda folder: npz(folder / "e.npz", embeddings=ROWS), "labels are missing (save with np"),
    "npz without embeddings": (lambda folder: npz(folder / "e.npz", labels=LABELS), "embeddings are missing"),
    "npy without labels": (lambda folder: npy(folder / "e.npy", ROWS), "labels are missing (give them with --labels"),
    "Parquet without labels": (parquet(embedding=list(ROWS)), "labels are missing (columns label, and"),
    "Parquet without numbers": (parquet(label=LABELS, a=["x"] * 6), "embeddings are missing"),
    "ragged lists": (parquet(label=LABELS, embedding=[[1.0, 2.0]] * 5 + [[1.0]]), "lists of numbers of one length"),
    "a row without": (parquet(label=LABELS, embedding=[*ROWS[:5], None]), "lists of numbers"),
    "labels that are lists": (parquet(label=[[1, 2]] * 6, embedding=list(ROWS)), "column 'label'"),
    "labels that are missing": (parquet(label=[*"aabb", None, None], embedding=list(ROWS)), "row 5 has no label"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_embeddings_are_one_line(case: str, tmp_path: Path) -> None:
    make, message = BROKEN[case]
    path = make(tmp_path)
    with refused(path, message):
        read_embeddings(path)


def test_broken_labels_are_one_line(tmp_path: Path) -> None:
    text(tmp_path / "bytes.txt", b"\xff\xfe\x00")
    text(tmp_path / "empty.npy", b"")
    text(tmp_path / "heading.csv", "path,label\na.jpg,1\n")
    for name, message in (
        ("none.txt", "no such file"),
        ("none.npy", "no such file"),
        ("bytes.txt", "not a text file with a label per line"),
        ("empty.npy", "not an .npz"),
        (".", "not a text file"),
        ("heading.csv", "its first line is a heading (path,label)"),
    ):
        with refused(tmp_path / name, message):
            read_labels(tmp_path / name)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_reads_as_it_was_written_and_stays_whole_when_writing_fails(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(frame: pd.DataFrame, path: Path, **options: Any) -> None:
        path.write_bytes(b"half of a")
        raise OSError(28, "No space left on device")

    frame = pd.DataFrame({"label": TEXT, "value": [0.1, np.nan, 1 / 3, 1e-300, 5.0, -0.0], "count": LABELS})
    path = tmp_path / "new" / f"table{suffix}"
    write_frame(frame, path)
    monkeypatch.setattr(pd.DataFrame, f"to_{suffix[1:]}", full)
    with pytest.raises(OSError, match="No space"):
        write_frame(frame, path)
    found = pd.read_csv(path) if suffix == ".csv" else pd.read_parquet(path)
    pd.testing.assert_frame_equal(found, frame, check_exact=True)
    assert files_below(path.parent) == [path.name]


def test_parquet_without_pyarrow_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = table(tmp_path / "e.parquet", label=LABELS, embedding=list(ROWS)), builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] in ("pyarrow", "fastparquet"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr("pandas.io.parquet.import_optional_dependency", without, raising=False)
    with refused(path, "pyarrow"):
        read_embeddings(path)
    with refused("new.parquet", "pyarrow", ".csv"):
        write_frame(pd.DataFrame({"a": [1]}), tmp_path / "new.parquet")
    assert files_below(tmp_path) == ["e.parquet"]
