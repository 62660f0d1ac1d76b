"""Embeddings and labels from files: every accepted form gives the same arrays, every broken one gives one line."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from retrieval_bench.evaluation.files import check_table_name, read_embeddings, read_labels, read_set, write_frame
from tests.data.data_checks import files_below, refused

ROWS = np.random.default_rng(0).normal(size=(6, 4))
LABELS = np.array([0, 0, 1, 1, 2, 2])
TEXT = np.array(["blue tit", "blue tit", "grünfink", "grünfink", "a,b", "a,b"])


def table(path: Path, **columns: Any) -> Path:
    pd.DataFrame(columns).to_parquet(path)
    return path


def text(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def saved(path: Path, **arrays: Any) -> Path:
    if path.suffix == ".npy":
        np.save(path, arrays["embeddings"], allow_pickle=True)
    else:
        np.savez(path, **arrays)
    return path


def halved(path: Path) -> Path:
    return text(path, path.read_bytes()[: path.stat().st_size // 2])


FORMS: dict[str, Callable[[Path, np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "npz": lambda folder, labels: read_embeddings(saved(folder / "e.npz", embeddings=ROWS, labels=labels)),
    "npy and npy": lambda folder, labels: read_embeddings(
        saved(folder / "e.npy", embeddings=ROWS), saved(folder / "l.npy", embeddings=labels)
    ),
    "npz and npy": lambda folder, labels: read_embeddings(
        saved(folder / "e.npz", embeddings=ROWS, labels=[9] * 6), saved(folder / "l.npy", embeddings=labels)
    ),
    "lists": lambda folder, labels: read_embeddings(table(folder / "e.parquet", label=labels, embedding=list(ROWS))),
    "columns": lambda folder, labels: read_embeddings(
        table(folder / "e.parquet", name=["x"] * 6, label=labels, **{f"d{i}": ROWS[:, i] for i in range(4)})
    ),
    "Parquet and npy": lambda folder, labels: read_embeddings(
        table(folder / "e.parquet", embedding=list(ROWS)), saved(folder / "l.npy", embeddings=labels)
    ),
}


@pytest.mark.parametrize("labels", [LABELS, TEXT], ids=["numbers", "text"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_arrays(form: str, labels: np.ndarray, tmp_path: Path) -> None:
    embeddings, found = FORMS[form](tmp_path, labels)
    assert np.array_equal(embeddings, ROWS)
    assert found.tolist() == labels.tolist()
    assert found.dtype.kind == labels.dtype.kind


def test_npy_is_mapped_and_not_read(tmp_path: Path) -> None:
    embeddings, _ = read_embeddings(
        saved(tmp_path / "e.npy", embeddings=ROWS), saved(tmp_path / "l.npy", embeddings=LABELS)
    )
    assert isinstance(embeddings, np.memmap)
    assert not embeddings.flags.writeable


@pytest.mark.parametrize("content", ["a\nb\nc d\n", "a\nb\nc d", "a\r\nb\r\nc d\r\n", b"\xef\xbb\xbfa\nb\nc d\n"])
def test_labels_are_lines_of_text(content: str | bytes, tmp_path: Path) -> None:
    assert read_labels(text(tmp_path / "labels.txt", content)).tolist() == ["a", "b", "c d"]


def test_queries_of_an_npz_file_are_read(tmp_path: Path) -> None:
    given = {"embeddings": ROWS, "labels": LABELS, "query_embeddings": ROWS[:2], "query_labels": LABELS[:2]}
    found = read_set(saved(tmp_path / "e.npz", **given, unrelated=np.ones(3)))
    assert found.keys() == given.keys()
    assert all(np.array_equal(found[name], values) for name, values in given.items())


@pytest.mark.parametrize("name", ["E.NPZ", "embeddings.zip", "embeddings"])
def test_queries_are_read_whatever_the_file_is_called(name: str, tmp_path: Path) -> None:
    saved(
        tmp_path / "e.npz", embeddings=ROWS, labels=LABELS, query_embeddings=ROWS[:2], query_labels=LABELS[:2]
    ).rename(tmp_path / name)
    assert "query_embeddings" in read_set(tmp_path / name)


def test_labels_from_elsewhere_leave_the_queries_alone(tmp_path: Path) -> None:
    path = saved(tmp_path / "e.npz", embeddings=ROWS, labels=LABELS, query_embeddings=ROWS[:2], query_labels=LABELS[:2])
    found = read_set(path, text(tmp_path / "l.txt", "\n".join(TEXT)))
    assert found["labels"].tolist() == TEXT.tolist()
    assert found["query_labels"].tolist() == [0, 0]


BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing npz": (lambda folder: folder / "e.npz", "no such file"),
    "missing npy": (lambda folder: folder / "e.npy", "no such file"),
    "missing Parquet": (lambda folder: folder / "e.parquet", "no such file"),
    "below a file": (lambda folder: text(folder / "file", "") / "e.npz", "Not a directory"),
    "folder": (lambda folder: folder, "Is a directory"),
    "empty npz": (lambda folder: text(folder / "e.npz", ""), "not an .npz"),
    "empty npy": (lambda folder: text(folder / "e.npy", ""), "not an .npz"),
    "empty Parquet": (lambda folder: text(folder / "e.parquet", ""), "not a Parquet file"),
    "CSV": (lambda folder: text(folder / "e.csv", "label,d0\n1,2\n"), "not an .npz, .npy or .parquet file"),
    "truncated npz": (lambda folder: halved(saved(folder / "e.npz", embeddings=ROWS, labels=LABELS)), "not an .npz"),
    "truncated npy": (lambda folder: halved(saved(folder / "e.npy", embeddings=ROWS)), "not an .npz"),
    "truncated Parquet": (
        lambda folder: halved(table(folder / "e.parquet", embedding=list(ROWS))),
        "not a Parquet file",
    ),
    "damaged npz": (lambda folder: damaged(saved(folder / "e.npz", embeddings=ROWS, labels=LABELS)), "not an .npz"),
    "objects in npz": (
        lambda folder: saved(folder / "e.npz", embeddings=np.array([{}], object), labels=[1]),
        "Object arrays",
    ),
    "object labels": (
        lambda folder: saved(folder / "e.npz", embeddings=ROWS, labels=TEXT.astype(object)),
        "Object arrays",
    ),
    "objects in npy": (lambda folder: saved(folder / "e.npy", embeddings=np.array([{}], object)), "objects"),
    "npz without labels": (
        lambda folder: saved(folder / "e.npz", embeddings=ROWS),
        "labels are missing (save with np.savez",
    ),
    "npz without embeddings": (
        lambda folder: saved(folder / "e.npz", vectors=ROWS, labels=LABELS),
        "embeddings are missing",
    ),
    "npy without labels": (
        lambda folder: saved(folder / "e.npy", embeddings=ROWS),
        "labels are missing (give them with --labels FILE)",
    ),
    "Parquet without labels": (
        lambda folder: table(folder / "e.parquet", embedding=list(ROWS)),
        "labels are missing (columns label and",
    ),
    "Parquet without numbers": (
        lambda folder: table(folder / "e.parquet", label=LABELS, a=["x"] * 6),
        "embeddings are missing",
    ),
    "ragged lists": (
        lambda folder: table(folder / "e.parquet", label=LABELS, embedding=[[1.0, 2.0]] * 5 + [[1.0]]),
        "lists of numbers of one length",
    ),
    "lists of text": (
        lambda folder: table(folder / "e.parquet", label=LABELS, embedding=[["x"]] * 6),
        "lists of numbers",
    ),
    "text": (lambda folder: table(folder / "e.parquet", label=LABELS, embedding=["x"] * 6), "lists of numbers"),
    "a row without": (
        lambda folder: table(folder / "e.parquet", label=LABELS, embedding=[*ROWS[:5], None]),
        "lists of numbers",
    ),
    "lists of lists": (
        lambda folder: table(folder / "e.parquet", label=LABELS, embedding=[[[1.0], [2.0]]] * 6),
        "lists of numbers",
    ),
    "labels that are lists": (
        lambda folder: table(folder / "e.parquet", label=[[1]] * 6, embedding=list(ROWS)),
        "label",
    ),
    "labels that are bytes": (
        lambda folder: table(folder / "e.parquet", label=[b"\xff"] * 6, embedding=list(ROWS)),
        "label",
    ),
    "labels that are missing": (
        lambda folder: table(folder / "e.parquet", label=[*"aabb", None, None], embedding=list(ROWS)),
        "label",
    ),
}


def damaged(path: Path) -> Path:
    """The same file with one byte of the first array's numbers turned around."""
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    return text(path, bytes(content))


@pytest.mark.parametrize("case", BROKEN)
def test_broken_embeddings_are_one_line(case: str, tmp_path: Path) -> None:
    make, message = BROKEN[case]
    path = make(tmp_path)
    with refused(path, message):
        read_embeddings(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "no such file"),
        ("none.npy", None, "no such file"),
        ("bytes.txt", b"\xff\xfe\x00", "not a text file with a label per line"),
        ("empty.npy", b"", "not an .npz"),
        ("zip.npz", b"PK\x03\x04\xff", "not a text file"),
    ],
)
def test_broken_labels_are_one_line(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with refused(path, message):
        read_labels(path)


def test_a_folder_is_no_file_of_labels(tmp_path: Path) -> None:
    with refused(tmp_path, "not a text file"):
        read_labels(tmp_path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_reads_as_it_was_written(suffix: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"label": TEXT, "value": [0.1, np.nan, 1 / 3, 1e-300, 5.0, -0.0], "count": LABELS})
    path = tmp_path / "new" / f"table{suffix}"
    write_frame(frame, path)
    found = pd.read_csv(path) if suffix == ".csv" else pd.read_parquet(path)
    pd.testing.assert_frame_equal(found, frame, check_exact=True)
    assert files_below(path.parent) == [path.name]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_old_table_stays_whole_when_writing_fails(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(frame: pd.DataFrame, path: Path, **options: Any) -> None:
        path.write_bytes(b"half of a")
        raise OSError(28, "No space left on device")

    path = text(tmp_path / f"table{suffix}", "old")
    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(OSError, match="No space"):
        write_frame(pd.DataFrame({"a": [1]}), path)
    assert path.read_text() == "old"
    assert files_below(tmp_path) == [path.name]


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


@pytest.mark.parametrize("name", ["table.txt", "table", "table.npz", ".csv"])
def test_other_endings_are_refused(name: str) -> None:
    check_table_name(None)
    check_table_name(Path("table.csv"))
    with refused(name, ".csv or .parquet"):
        check_table_name(Path(name))
