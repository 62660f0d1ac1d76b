"""Anyone's embeddings: what is accepted, and the one line for what is not."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval_bench.errors import UserError
from retrieval_bench.evaluation.evaluate import evaluate, evaluate_file

VECTORS = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
LABELS = np.array([0, 0, 1, 1])


def test_reads_an_npz_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", embeddings=VECTORS, labels=LABELS)
    assert evaluate_file(tmp_path / "e.npz", (1,))["recall_at_1"] == 1.0


def test_reads_queries_apart_from_the_gallery(tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", embeddings=VECTORS, labels=LABELS, query_embeddings=VECTORS[:1], query_labels=[1])
    found = evaluate_file(tmp_path / "e.npz", (1, 3))
    assert (found["recall_at_1"], found["recall_at_3"], found["queries"]) == (0.0, 1.0, 1)


def test_labels_may_be_strings() -> None:
    assert evaluate(VECTORS, np.array(["a", "a", "b", "b"]), ks=(1,))["recall_at_1"] == 1.0


def test_whole_and_floating_labels_match() -> None:
    assert evaluate(VECTORS, LABELS, VECTORS, LABELS.astype(float), ks=(1,))["queries"] == 4


def test_query_without_match_in_the_gallery_is_left_out() -> None:
    found = evaluate(VECTORS, LABELS, VECTORS, np.array([0, 0, 1, 5]), ks=(1,))
    assert (found["queries"], found["queries_without_positive"]) == (3, 1)


def row(value: float) -> np.ndarray:
    vectors = VECTORS.copy()
    vectors[2] = value
    return vectors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": row(np.nan)}, "row 2 has NaN"),
        ({"embeddings": row(np.inf)}, "row 2 has NaN or infinite"),
        ({"embeddings": row(0.0)}, "row 2 is a zero vector"),
        ({"embeddings": VECTORS[0]}, "shape"),
        ({"embeddings": VECTORS.astype(str)}, "expected numbers"),
        ({"labels": LABELS[:3]}, r"labels: expected shape \(4,\)"),
        ({"labels": np.array([0, 0, np.nan, 1])}, "labels: expected whole numbers or text"),
        ({"labels": np.zeros(4, "timedelta64[s]")}, "labels: expected whole numbers or text"),
        ({"query_embeddings": VECTORS, "query_labels": np.array(list("abcd"))}, "one is text"),
        ({"labels": np.arange(4)}, "no query has an item of its class"),
        ({"query_embeddings": VECTORS}, "come together"),
        ({"query_embeddings": np.ones((4, 3)), "query_labels": LABELS}, "3 dimensions"),
        ({"ks": (0, 1)}, "from 1 up"),
        ({"ks": (2, 2)}, "distinct"),
        ({"ks": ()}, "distinct"),
    ],
)
def test_refuses_with_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        evaluate(**{"embeddings": VECTORS, "labels": LABELS, **changes})
    assert "\n" not in str(error.value)


def test_tiny_and_huge_vectors_keep_their_direction() -> None:
    assert evaluate(VECTORS * 1e-300, LABELS, ks=(1,)) == evaluate(VECTORS * 1e300, LABELS, ks=(1,)) == evaluate(VECTORS, LABELS, ks=(1,))


def write_pickle(path: Path) -> None:
    np.savez(path, embeddings=np.array([{"a": 1}], dtype=object), labels=[0])


def write_garbage(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 this is no archive")


def write_truncated(path: Path) -> None:
    np.savez(path, embeddings=np.random.default_rng(0).normal(size=(99, 9)), labels=np.zeros(99))
    path.write_bytes(path.read_bytes()[:900])


def write_npy(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, VECTORS)


def write_bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"embeddings": 1}))


@pytest.mark.parametrize(
    "write", [write_pickle, write_garbage, write_truncated, write_npy, write_bare_pickle, Path.touch, lambda path: None]
)
def test_refuses_files_that_are_not_plain_arrays(write: Any, tmp_path: Path) -> None:
    path = tmp_path / "e.npz"
    write(path)
    with pytest.raises(UserError, match=r"e\.npz") as error:
        evaluate_file(path, (1,))
    assert "\n" not in str(error.value)


def test_a_damaged_file_is_one_line_or_right(tmp_path: Path) -> None:
    path = tmp_path / "e.npz"
    np.savez_compressed(path, embeddings=VECTORS, labels=LABELS)
    whole = path.read_bytes()
    refusals: list[str] = []
    for position in range(0, len(whole), 3):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        try:
            assert evaluate_file(path, (1,))["recall_at_1"] == 1.0
        except UserError as error:
            refusals.append(str(error))
    assert len(refusals) > len(whole) / 10
    assert not any("\n" in line for line in refusals)


def test_names_the_missing_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", embeddings=VECTORS)
    with pytest.raises(UserError, match="'labels' is missing"):
        evaluate_file(tmp_path / "e.npz", (1,))
