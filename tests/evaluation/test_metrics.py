"""Recall@K against an exact oracle, on cases full of ties, and against pytorch-metric-learning where there are none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from retrieval_bench.errors import UserError
from retrieval_bench.evaluation import metrics
from retrieval_bench.evaluation.evaluate import evaluate
from retrieval_bench.evaluation.search import unit_rows
from tests.oracles.recall import recall_at_k

Case = tuple[list[list[int]], list[int]]


@st.composite
def tied_cases(draw: st.DrawFn, dim: int | None = None) -> Case:
    """Integer vectors with few distinct values (duplicates, opposite and collinear vectors) and few classes."""
    dim = dim or draw(st.integers(1, 4))
    vector = st.lists(st.integers(-2, 2), min_size=dim, max_size=dim).filter(any)
    vectors = draw(st.lists(vector, min_size=2, max_size=24))
    labels = draw(st.lists(st.integers(0, 4), min_size=len(vectors), max_size=len(vectors)))
    return vectors, labels


@settings(max_examples=200, deadline=None)
@given(tied_cases(), st.integers(1, 30))
def test_equals_the_oracle_on_ties_and_duplicates(case: Case, k: int) -> None:
    vectors, labels = case
    expected = recall_at_k(vectors, labels, k)
    if expected is None:
        return
    assert evaluate(np.array(vectors), np.array(labels), ks=(k,))[f"recall_at_{k}"] == pytest.approx(expected, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(tied_cases(dim=3), tied_cases(dim=3), st.integers(1, 8))
def test_equals_the_oracle_with_a_separate_gallery(queries: Case, gallery: Case, k: int) -> None:
    expected = recall_at_k(*gallery, k, *queries)
    if expected is None:
        return
    found = evaluate(np.array(gallery[0]), np.array(gallery[1]), np.array(queries[0]), np.array(queries[1]), ks=(k,))
    assert found[f"recall_at_{k}"] == pytest.approx(expected, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(tied_cases(), st.integers(1, 12), st.data())
def test_equals_the_oracle_when_some_queries_are_in_the_gallery(case: Case, k: int, data: st.DataObject) -> None:
    vectors, labels = np.array(case[0]), np.array(case[1])
    roles = np.array(data.draw(st.lists(st.sampled_from(["query", "gallery", "both"]), min_size=len(labels), max_size=len(labels))))
    query, gallery = (np.array(data.draw(st.permutations(np.flatnonzero(roles != other).tolist())), int) for other in ("gallery", "query"))
    if not len(query) or not len(gallery):
        return
    place = {row: index for index, row in enumerate(gallery.tolist())}
    itself = [place.get(row, -1) for row in query.tolist()]
    one, other = (vectors[rows].tolist() for rows in (gallery, query))
    expected = recall_at_k(one, labels[gallery].tolist(), k, other, labels[query].tolist(), itself)
    if expected is None:
        with pytest.raises(UserError, match="no query has an item of its class"):
            evaluate(vectors[gallery], labels[gallery], vectors[query], labels[query], np.array(itself), ks=(k,))
        return
    found = evaluate(vectors[gallery], labels[gallery], vectors[query], labels[query], np.array(itself), ks=(k,))
    assert found[f"recall_at_{k}"] == pytest.approx(expected, abs=1e-12)


def test_every_row_both_query_and_gallery_is_self_retrieval() -> None:
    rng = np.random.default_rng(3)
    vectors, labels = rng.integers(-2, 3, (40, 3)) + 0.5, rng.integers(0, 6, 40)
    order = rng.permutation(40)
    asked = evaluate(vectors, labels, vectors[order], labels[order], same_item=order)
    assert asked == evaluate(vectors, labels)
    assert asked != evaluate(vectors, labels, vectors[order], labels[order]), "found itself"


@pytest.mark.parametrize("same_item", [np.array([0]), np.array([0, 1, 99]), np.array([0.0, 1.0, 2.0])])
def test_same_item_that_does_not_fit_is_one_line(same_item: np.ndarray) -> None:
    with pytest.raises(UserError, match="same_item"):
        evaluate(np.eye(3), np.array([0, 0, 1]), np.eye(3), np.array([0, 0, 1]), same_item)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100))
def test_permutation_scaling_and_rotation_change_nothing(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    vectors, labels = rng.normal(size=(60, 8)), rng.integers(0, 12, 60)
    order = rng.permutation(60)
    rotation, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    assert evaluate(vectors, labels) == evaluate((scale * vectors @ rotation)[order], labels[order])


def test_recall_grows_with_k_and_reaches_one() -> None:
    rng = np.random.default_rng(0)
    found = evaluate(rng.normal(size=(50, 4)), rng.integers(0, 5, 50), ks=(1, 2, 4, 8, 50))
    values = [found[f"recall_at_{k}"] for k in (1, 2, 4, 8, 50)]
    assert values == sorted(values)
    assert values[-1] == 1.0


def test_a_positive_that_ties_with_a_negative_ranks_behind_it() -> None:
    vectors, labels = np.ones((4, 3)), np.array([0, 0, 1, 1])
    assert evaluate(vectors, labels, ks=(1, 2, 3)) == {
        "recall_at_1": 0.0,
        "recall_at_2": 0.0,
        "recall_at_3": 1.0,
        "queries": 4,
        "queries_without_positive": 0,
    }


def test_self_is_left_out_by_index_even_among_exact_copies() -> None:
    vectors = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert evaluate(vectors, np.array([0, 0, 1, 1]), ks=(1,))["recall_at_1"] == 1.0
    assert evaluate(vectors, np.array([0, 1, 0, 1]), ks=(1,))["recall_at_1"] == 0.0


def test_classes_with_one_image_are_left_out_and_counted() -> None:
    vectors, labels = np.eye(3)[[0, 0, 1]], np.array([0, 0, 7])
    found = evaluate(vectors, labels, ks=(1,))
    assert (found["recall_at_1"], found["queries"], found["queries_without_positive"]) == (1.0, 2, 1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_agrees_with_pytorch_metric_learning_without_ties(dtype: type) -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 40, 400)
    vectors = (rng.normal(size=(40, 16))[labels] + 2 * rng.normal(size=(400, 16))).astype(dtype)
    peer = AccuracyCalculator(include=("precision_at_1",), k=5)
    unit = unit_rows(vectors).astype(np.float32)
    expected = peer.get_accuracy(unit, labels, unit, labels, ref_includes_query=True)["precision_at_1"]
    assert evaluate(vectors, labels)["recall_at_1"] == pytest.approx(expected, abs=1e-9)


def test_near_ties_beyond_float32_are_decided_in_float64() -> None:
    """Twelve negatives and one positive within 1e-9 of each other: FAISS's float32 ranking among them is arbitrary."""
    angle = np.array([0.0, 0.5] + [0.5 + 1e-9 * step for step in range(1, 13)])
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    labels = np.array([0, 0, *range(1, 13)])
    ahead = metrics.negatives_ahead(vectors, labels, vectors, labels, limit=1, itself=np.arange(14))
    assert ahead[0] == 0, "the positive is nearer by 1e-9"
    vectors[1] = [np.cos(0.5 + 13e-9), np.sin(0.5 + 13e-9)]
    ahead = metrics.negatives_ahead(vectors, labels, vectors, labels, limit=13, itself=np.arange(14))
    assert ahead[0] == 12, "the positive is farther by 1e-9"


def test_pieces_of_the_gathered_products_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    queries, gallery, index = rng.normal(size=(9, 4)), rng.normal(size=(7, 4)), rng.integers(0, 7, (9, 3))
    monkeypatch.setattr(metrics, "PIECE", 24)
    np.testing.assert_allclose(metrics.gathered_products(queries, gallery, index), np.einsum("qd,qkd->qk", queries, gallery[index]))
