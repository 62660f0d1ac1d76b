"""The metrics: by hand, against other libraries, what must not change them, and which ranks they need."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from retrieval_bench.evaluation.evaluate import evaluate, evaluate_in_detail
from retrieval_bench.evaluation.metrics import CURVE, METRICS, Needs, Ranking, check_ks, depths
from retrieval_bench.evaluation.vectors import Distance
from tests.data.data_checks import refused
from tests.evaluation.retrieval_cases import EVERY, TOP, Case, clusters, integers


def test_each_metric_by_hand() -> None:
    """The query's neighbours: wrong, right, right, wrong, right."""
    angles = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    gallery, labels = np.stack([np.cos(angles), np.sin(angles)], axis=1), np.array([9, 7, 7, 9, 7])
    found = evaluate_in_detail(gallery, labels, np.array([[1.0, 0.0]]), np.array([7]), ks=(1, 2, 4, 10), metrics=EVERY)
    expected = {"recall_at_1": 0, "recall_at_2": 1, "recall_at_4": 1, "recall_at_10": 1, "mrr": 1 / 2}
    expected |= {"precision_at_1": 0, "precision_at_2": 1 / 2, "precision_at_4": 1 / 2, "precision_at_10": 3 / 10}
    expected |= {"r_precision": 2 / 3, "map_at_r": (1 / 2 + 2 / 3) / 3, "map": (1 / 2 + 2 / 3 + 3 / 5) / 3}
    expected |= {"map_at_1": 0, "map_at_2": 1 / 4, "map_at_4": (1 / 2 + 2 / 3) / 3, "map_at_10": expected["map"]}
    gains = {1: 1, 2: 1 / np.log2(3), 3: 1 / 2, 5: 1 / np.log2(6)}
    first, second, all_three = gains[2], gains[2] + gains[3], gains[2] + gains[3] + gains[5]
    ideal = 1 + gains[2], 1 + gains[2] + gains[3]
    expected |= {"ndcg_at_1": 0, "ndcg_at_2": first / ideal[0], "ndcg_at_4": second / ideal[1]}
    expected |= {"ndcg_at_10": all_three / ideal[1]}
    expected["map_trapezoid"] = (1 / 2 + (1 / 2 + 2 / 3) + (2 / 4 + 3 / 5)) / 2 / 3
    assert found.metrics == pytest.approx({**expected, "queries": 1, "queries_without_positive": 0})
    assert found.curve is not None
    assert found.curve[[0, 33, 66, 67, 100], 1] == pytest.approx([2 / 3, 2 / 3, 2 / 3, 3 / 5, 3 / 5])


def test_a_metric_raises_for_ranks_that_it_needs_and_the_ranking_lacks() -> None:
    counts = np.array([3])
    for exact in get_args(Needs):
        depth = depths([exact], counts, 2)
        ranking = Ranking(np.array([0]), counts, depth, np.array([1, 9, 11])[: max(1, min(3, depth[0]))])
        for metric in (*METRICS.values(), CURVE):
            if depths([metric.needs], counts, 2)[0] <= depth[0]:
                assert np.isfinite(metric(ranking, 2)).all()
            else:
                with pytest.raises(ValueError, match=f"needs '{metric.needs}' ranks to be exact"):
                    metric(ranking, 2)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_agrees_with_pytorch_metric_learning_without_ties(dtype: type, distance: Distance) -> None:
    vectors, labels = clusters(400, 40, seed=1, dim=16, copies=False)
    given = vectors.astype(dtype).astype(np.float32)
    if distance == "cosine":
        given /= np.linalg.norm(given, axis=1, keepdims=True)
    names = {"precision_at_1": "recall_at_1", "r_precision": "r_precision", "mean_average_precision_at_r": "map_at_r"}
    peer = AccuracyCalculator(include=tuple(names), k="max_bin_count")
    expected = peer.get_accuracy(given, labels, given, labels, ref_includes_query=True)
    found = evaluate(vectors.astype(dtype), labels, distance=distance)
    for theirs, ours in names.items():
        assert found[ours] == pytest.approx(expected[theirs], abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["cosine", "l2"]), st.floats(1e-3, 1e3))
def test_order_names_rotation_and_scale_change_nothing(seed: int, distance: Distance, scale: float) -> None:
    vectors, labels = clusters(60, 12, seed, dim=8, copies=False)
    rng = np.random.default_rng(seed)
    order, names = rng.permutation(60), np.array([f"class {name}" for name in rng.permutation(12)])
    rotation, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    lengths = 10 ** rng.uniform(-90, 90, (60, 1)) if distance == "cosine" else 1.0
    moved = (scale * lengths * vectors @ rotation + (5.0 if distance == "l2" else 0.0))[order]
    plain = evaluate_in_detail(vectors, labels, metrics=EVERY, distance=distance)
    again = evaluate_in_detail(moved, names[labels][order], metrics=EVERY, distance=distance)
    assert again.metrics == pytest.approx(plain.metrics, abs=1e-12)
    for name in plain.columns.keys() - {"query", "label"}:
        np.testing.assert_array_equal(again.columns[name], plain.columns[name][order])


@settings(max_examples=30, deadline=None)
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


def test_perfect_and_worst_orders() -> None:
    perfect = np.repeat(np.eye(2), 5, axis=0)
    assert set(evaluate(perfect, np.repeat([0, 1], 5), metrics=TOP, ks=(1, 2, 4, 8)).values()) == {1.0, 10, 0}
    worst = evaluate(np.array([[1.0], [-1.0]]), np.array([0, 0]), metrics=TOP, ks=(1,))
    assert worst["map_at_r"] == 1.0, "the only item is the nearest, however far"
    none = evaluate(perfect, np.tile([0, 1, 2, 3, 4], 2), metrics=TOP, ks=(4,))
    assert (none["recall_at_4"], none["r_precision"], none["map_at_r"]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("ks", [(), (0, 1), (2, 2), (1.5,)])
def test_ks_are_distinct_whole_numbers_from_1_up(ks: tuple[int, ...]) -> None:
    with refused("--k", "distinct whole numbers from 1 up"):
        check_ks(ks)
