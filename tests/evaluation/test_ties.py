"""Expected metrics against all orders of what is tied, and bounds around them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_bench.evaluation.evaluate import evaluate, evaluate_in_detail
from tests.data.data_checks import refused
from tests.evaluation.retrieval_cases import EXPECTED as METRICS
from tests.evaluation.retrieval_cases import chunked
from tests.oracles import retrieval

KS = (1, 2, 3, 5)


def orders(levels: list[list[bool]]) -> list[dict[str, float]]:
    """The metrics of every order of items within their levels of equal similarity."""
    every = itertools.product(*(itertools.permutations(level) for level in levels))
    return [retrieval.metrics([flag for level in order for flag in level], KS) for order in every]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=4), min_size=1, max_size=3), st.sampled_from([1, 2000]))
def test_average_is_over_all_orders_of_ties_and_bounds_are_the_ends(levels: list[list[bool]], positives: int) -> None:
    flags = [flag for level in levels for flag in level]
    angles = np.repeat(np.arange(1, len(levels) + 1) / 10, [len(level) for level in levels])
    given = (np.stack([np.cos(angles), np.sin(angles)], axis=1), np.array(flags, dtype=int), np.array([[1.0, 0.0]]))
    if not any(flags):
        return
    with chunked(64, positives, swept=False):
        average = evaluate(*given, np.array([1]), ks=KS, metrics=METRICS, ties="average")
        bounds = evaluate(*given, np.array([1]), ks=KS, metrics=METRICS, ties="bounds")
    expected = orders(levels)
    for name in expected[0].keys() - {"positives", "first_rank", "map_trapezoid"}:
        values = [each[name] for each in expected]
        assert average[name] == pytest.approx(np.mean(values), abs=1e-9), name
        assert (bounds[name], bounds[f"{name}_upper"]) == pytest.approx((min(values), max(values))), name


def test_without_ties_all_rules_agree_and_codes_lie_between_the_bounds() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 200)
    vectors = rng.normal(size=(5, 8))[labels] + rng.normal(size=(200, 8))
    lower, average = (evaluate(vectors, labels, metrics=METRICS, ties=rule) for rule in ("lower", "average"))
    assert average == pytest.approx(lower, abs=1e-9)
    codes = evaluate_in_detail(np.where(vectors > 0, 1, -1), labels, metrics=METRICS, ties="bounds")
    within = evaluate(np.where(vectors > 0, 1, -1), labels, metrics=METRICS, ties="average")
    for name in within.keys() - {"queries", "queries_without_positive"}:
        assert codes.metrics[name] < within[name] < codes.metrics[f"{name}_upper"]
    assert "map_upper" in codes.per_class()


def test_a_metric_without_an_expected_value_is_refused() -> None:
    with refused("--ties average: there is no expected value of map_trapezoid"):
        evaluate(np.eye(4), np.array([0, 0, 1, 1]), metrics=("map_trapezoid",), ties="average")
