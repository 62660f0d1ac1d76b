"""The metrics: by hand, against other libraries, and what must not change them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.metrics import average_precision_score

from retrieval_bench.evaluation.evaluate import evaluate, evaluate_in_detail
from retrieval_bench.evaluation.vectors import Distance
from tests.evaluation.retrieval_cases import EVERY, TOP, Case, integers
from tests.oracles import retrieval

KS = (1, 2, 4, 8)


def drawn(seed: int, rows: int = 60, classes: int = 12, dim: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes without ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    return rng.normal(size=(classes, dim))[labels] + rng.normal(size=(rows, dim)), labels


def test_each_metric_by_hand() -> None:
    """The query's neighbours: wrong, right, right, wrong, right."""
    angles = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    gallery, labels = np.stack([np.cos(angles), np.sin(angles)], axis=1), np.array([9, 7, 7, 9, 7])
    found = evaluate_in_detail(gallery, labels, np.array([[1.0, 0.0]]), np.array([7]), ks=(1, 2, 4, 10), metrics=EVERY)
    expected = {
        "recall_at_1": 0,
        "recall_at_2": 1,
        "recall_at_4": 1,
        "recall_at_10": 1,
        "mrr": 1 / 2,
        "r_precision": 2 / 3,
    }
    expected |= {
        "map_at_r": (1 / 2 + 2 / 3) / 3,
        "map": (1 / 2 + 2 / 3 + 3 / 5) / 3,
        "queries": 1,
        "queries_without_positive": 0,
    }
    expected |= {"precision_at_1": 0, "precision_at_2": 1 / 2, "precision_at_4": 1 / 2, "precision_at_10": 3 / 10}
    assert found.metrics == pytest.approx(expected)
    assert found.curve is not None
    assert found.curve[[0, 33, 66, 67, 100], 1] == pytest.approx([2 / 3, 2 / 3, 2 / 3, 3 / 5, 3 / 5])


@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_agrees_with_pytorch_metric_learning_without_ties(dtype: type, distance: Distance) -> None:
    vectors, labels = drawn(1, 400, 40, 16)
    given = vectors.astype(dtype).astype(np.float32)
    if distance == "cosine":
        given /= np.linalg.norm(given, axis=1, keepdims=True)
    peer = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"), k="max_bin_count"
    )
    expected = peer.get_accuracy(given, labels, given, labels, ref_includes_query=True)
    found = evaluate(vectors.astype(dtype), labels, distance=distance)
    assert found["recall_at_1"] == pytest.approx(expected["precision_at_1"], abs=1e-9)
    assert found["r_precision"] == pytest.approx(expected["r_precision"], abs=1e-9)
    assert found["map_at_r"] == pytest.approx(expected["mean_average_precision_at_r"], abs=1e-9)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_average_precision_agrees_with_scikit_learn_without_ties(distance: Distance) -> None:
    vectors, labels = drawn(2, 120)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    score = unit @ unit.T if distance == "cosine" else -np.linalg.norm(vectors[:, None] - vectors, axis=2)
    others = ~np.eye(len(labels), dtype=bool)
    expected = [
        average_precision_score(labels[mask] == labels[row], score[row, mask]) for row, mask in enumerate(others)
    ]
    found = evaluate_in_detail(vectors, labels, metrics=("map",), distance=distance)
    np.testing.assert_allclose(found.columns["map"], expected, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100), st.sampled_from(["cosine", "l2"]))
def test_permutation_scaling_rotation_and_new_names_change_nothing(seed: int, scale: float, distance: Distance) -> None:
    vectors, labels = drawn(seed)
    rng = np.random.default_rng(seed)
    order, names = rng.permutation(60), rng.permutation(12)
    rotation, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    moved = (scale * vectors @ rotation + (5.0 if distance == "l2" else 0.0))[order]
    plain = evaluate_in_detail(vectors, labels, metrics=EVERY, distance=distance)
    for other in (names[labels], np.array([f"class {name}" for name in names])[labels]):
        again = evaluate_in_detail(moved, other[order], metrics=EVERY, distance=distance)
        assert again.metrics == pytest.approx(plain.metrics, abs=1e-12)
        for name in plain.columns.keys() - {"query", "label"}:
            np.testing.assert_array_equal(again.columns[name], plain.columns[name][order])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_each_row_may_have_its_own_length_under_cosine(seed: int) -> None:
    vectors, labels = drawn(seed)
    lengths = 10 ** np.random.default_rng(seed).uniform(-90, 90, (60, 1))
    assert evaluate(vectors * lengths, labels, metrics=EVERY) == evaluate(vectors, labels, metrics=EVERY)


@settings(max_examples=40, deadline=None)
@given(integers(20, 2), integers(12, 2), st.data())
def test_order_of_queries_and_of_the_gallery_change_nothing_even_among_ties(
    gallery: np.ndarray, queries: np.ndarray, data: st.DataObject
) -> None:
    labels, asked = np.arange(20) % 4, np.arange(12) % 5
    plain = Case(gallery, labels, queries, asked).evaluated(metrics=EVERY)
    items, order = (np.array(data.draw(st.permutations(range(size)))) for size in (20, 12))
    again = Case(gallery[items], labels[items], queries[order], asked[order]).evaluated(metrics=EVERY)
    for name in plain.columns.keys() - {"query"}:
        np.testing.assert_array_equal(again.columns[name], plain.columns[name][order])


def test_every_row_both_query_and_gallery_is_self_retrieval() -> None:
    rng = np.random.default_rng(3)
    vectors, labels = rng.integers(-2, 3, (40, 3)) + 0.5, rng.integers(0, 6, 40)
    order = rng.permutation(40)
    asked = evaluate(vectors, labels, vectors[order], labels[order], same_item=order)
    assert asked == pytest.approx(evaluate(vectors, labels), abs=1e-12)
    assert asked != evaluate(vectors, labels, vectors[order], labels[order]), "found itself"


def test_recall_grows_with_k_and_reaches_one() -> None:
    vectors, labels = drawn(0, 50, 5, 4)
    found = evaluate(vectors, labels, ks=(1, 2, 4, 8, 49, 50, 1000))
    values = [found[f"recall_at_{k}"] for k in (1, 2, 4, 8, 49, 50, 1000)]
    assert values == sorted(values)
    assert values[0] < values[-3] == values[-1] == 1.0


def test_metrics_are_bounded_by_each_other() -> None:
    columns = evaluate_in_detail(*drawn(4, 200, 20), metrics=EVERY).columns
    assert (columns["map_at_r"] <= columns["r_precision"] + 1e-12).all()
    assert (columns["map_at_r"] <= columns["map"] + 1e-12).all()
    assert (columns["recall_at_1"] <= columns["mrr"]).all()
    assert (columns["precision_at_1"] == columns["recall_at_1"]).all()


def test_perfect_and_worst_orders() -> None:
    labels = np.repeat([0, 1], 5)
    perfect = np.repeat(np.eye(2), 5, axis=0)
    assert set(evaluate(perfect, labels, metrics=TOP, ks=KS).values()) == {1.0, 10, 0}
    worst = evaluate(np.array([[1.0], [-1.0]]), np.array([0, 0]), metrics=TOP, ks=(1,))
    assert worst["map_at_r"] == 1.0, "the only item is the nearest, however far"
    none = evaluate(perfect, np.tile([0, 1, 2, 3, 4], 2), metrics=TOP, ks=(4,))
    assert (none["recall_at_4"], none["r_precision"], none["map_at_r"]) == (0.0, 0.0, 0.0)


def test_self_is_left_out_by_index_even_among_exact_copies() -> None:
    vectors = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert evaluate(vectors, np.array([0, 0, 1, 1]), ks=(1,))["recall_at_1"] == 1.0
    assert evaluate(vectors, np.array([0, 1, 0, 1]), ks=(1,))["recall_at_1"] == 0.0


def test_classes_with_one_image_are_left_out_and_counted() -> None:
    vectors, labels = np.eye(3)[[0, 0, 1]], np.array([0, 0, 7])
    found = evaluate(vectors, labels, ks=(1,))
    assert (found["recall_at_1"], found["queries"], found["queries_without_positive"]) == (1.0, 2, 1)


def test_the_oracle_orders_as_float64_does_without_ties() -> None:
    vectors, labels = drawn(5, 30, 4)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for distance, score in (("cosine", unit @ unit.T), ("l2", -np.linalg.norm(vectors[:, None] - vectors, axis=2))):
        for row, ranked in enumerate(retrieval.relevance(vectors, labels.tolist(), distance=distance)):
            order = [item for item in np.argsort(-score[row]) if item != row]
            assert ranked == (labels[order] == labels[row]).tolist()
