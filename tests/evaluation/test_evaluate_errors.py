"""What the evaluator does not accept is answered with one line."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch

from retrieval_bench.evaluation.choices import check_ks
from retrieval_bench.evaluation.evaluate import evaluate
from tests.data.data_checks import refused

VECTORS = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
LABELS = np.array([0, 0, 1, 1])


def row(value: float) -> np.ndarray:
    vectors = VECTORS.copy()
    vectors[2] = value
    return vectors


APART = {"query_embeddings": VECTORS, "query_labels": LABELS}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": row(np.nan)}, "embeddings: row 2 has NaN"),
        ({"embeddings": row(np.inf)}, "row 2 has NaN or infinite"),
        ({"embeddings": row(0.0)}, "row 2 is a zero vector"),
        ({**APART, "query_embeddings": row(np.nan)}, "query_embeddings: row 2 has NaN"),
        ({"embeddings": VECTORS[0]}, "shape"),
        ({"embeddings": VECTORS.astype(str)}, "expected numbers"),
        ({"labels": LABELS[:3]}, "labels: expected shape (4,)"),
        ({"labels": LABELS[:, None]}, "labels: expected shape (4,)"),
        ({**APART, "query_labels": LABELS[:3]}, "query_labels: expected shape (4,)"),
        ({"labels": np.array([0, 0, np.nan, 1])}, "labels: expected whole numbers or text"),
        ({"labels": np.zeros(4, "timedelta64[s]")}, "labels: expected whole numbers or text"),
        ({"labels": np.array([0, 0, 1, None])}, "labels: expected whole numbers or text"),
        ({**APART, "query_labels": np.array(list("abcd"))}, "one is text"),
        ({"labels": np.arange(4)}, "no query has an item of its class"),
        ({**APART, "query_labels": LABELS + 5}, "no query has an item of its class"),
        ({"query_embeddings": VECTORS}, "come together"),
        ({"query_labels": LABELS}, "come together"),
        ({"query_embeddings": np.ones((4, 3)), "query_labels": LABELS}, "3 dimensions"),
        ({"embeddings": np.empty((0, 2)), "labels": []}, "no query has an item of its class"),
        ({"query_embeddings": np.empty((0, 2)), "query_labels": []}, "no query has an item of its class"),
        ({**APART, "embeddings": np.empty((0, 2)), "labels": []}, "no query has an item of its class"),
        ({"embeddings": np.empty((4, 0))}, "expected numbers of shape"),
        ({"same_item": np.arange(4)}, "same_item: without query_embeddings"),
        ({**APART, "same_item": np.arange(3)}, "same_item: expected 4 row numbers"),
        ({**APART, "same_item": np.array([0, 1, 2, 99])}, "same_item: expected 4 row numbers of embeddings (-1 to 3)"),
        ({**APART, "same_item": np.array([0, 1, 2, -2])}, "same_item"),
        (
            {**APART, "same_item": np.arange(4.0)},
            "same_item: expected 4 row numbers of embeddings (-1 to 3), found float64",
        ),
        ({"metrics": ("recall", "recal")}, "unknown metric 'recal' (known: recall, mrr,"),
        ({"engine": "annoy"}, "unknown engine 'annoy' (known: auto, blocked,"),
        ({"distance": "euclid"}, "unknown distance 'euclid' (known: cosine, l2)"),
        ({"ks": (0, 1)}, "from 1 up"),
        ({"ks": (2, 2)}, "distinct"),
        ({"ks": ()}, "distinct"),
    ],
)
def test_refuses_with_one_line(changes: dict[str, Any], message: str) -> None:
    with refused(message):
        evaluate(**{"embeddings": VECTORS, "labels": LABELS, **changes})


def test_refuses_k_that_is_no_whole_number() -> None:
    with refused("whole numbers"):
        check_ks(cast(Any, (1.5,)))


@pytest.mark.parametrize("device", ["gpu", "cuda"])
def test_refuses_a_device_that_is_not_there(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with refused(device):
        evaluate(VECTORS, LABELS, device=device)


@pytest.mark.parametrize("query_labels", [[0, 0, 1, 0], [0, 0, 1, 5]])
def test_a_query_whose_own_item_is_of_another_class_is_refused(query_labels: list[int]) -> None:
    with refused("same_item"):
        evaluate(VECTORS, np.array([0, 0, 1, 1]), VECTORS, np.array(query_labels), same_item=np.arange(4))


def test_bytes_beside_text_are_read_as_text() -> None:
    found = evaluate(VECTORS, np.array(["ä".encode(), b"a", b"b", b"b"]), VECTORS, np.array(list("äabb")))
    assert (found["queries"], found["recall_at_1"]) == (4, 1.0)


def test_large_labels_of_different_types_do_not_become_one() -> None:
    names = 2**60 + np.arange(4)
    with refused("2^53"):
        evaluate(VECTORS, names, VECTORS, names.astype(np.uint64), same_item=np.arange(4))
