"""Intervals and tests against SciPy's, and against what simulated data show."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from retrieval_bench.evaluation import statistics
from retrieval_bench.evaluation.statistics import (
    bootstrap_interval,
    holm,
    intervals,
    paired_permutation_test,
    paired_t_test,
    t_interval,
)
from tests.data.data_checks import refused

PAIRS = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=6)


def scores(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).beta(2, 1, count)


def scipy_p(first: np.ndarray, second: np.ndarray, resamples: int = 1 << 20) -> float:
    def difference(one: np.ndarray, two: np.ndarray, axis: int) -> np.ndarray:
        return np.mean(one - two, axis=axis)

    options = {"permutation_type": "samples", "n_resamples": resamples, "rng": np.random.default_rng(3)}
    return float(stats.permutation_test((first, second), difference, **options).pvalue)


@given(values=st.lists(st.floats(-100, 100), min_size=2, max_size=8), level=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
@settings(deadline=None, max_examples=50)
def test_t_interval_is_scipys(values: list[float], level: float) -> None:
    mean, half = t_interval(values, level)
    spread = float(stats.sem(values))
    low, high = stats.t.interval(level, len(values) - 1, np.mean(values), spread) if spread else (mean, mean)
    assert (mean, mean - half, mean + half) == pytest.approx((np.mean(values), low, high), abs=1e-9)


@given(pairs=PAIRS)
@settings(deadline=None)
def test_paired_t_test_is_scipys(pairs: list[tuple[float, float]]) -> None:
    first, second = map(list, zip(*pairs, strict=True))
    mean, half, p = paired_t_test(first, second)
    differences = np.subtract(first, second)
    assert (mean, half) == t_interval(differences)
    if differences.std() > 1e-6:
        assert p == pytest.approx(stats.ttest_rel(first, second).pvalue, abs=1e-9)
    assert p == paired_t_test(second, first)[2]


def test_few_or_equal_values() -> None:
    assert t_interval(np.array([1, 1, 1])) == (1.0, 0.0)
    assert t_interval([0.5])[0] == 0.5
    assert np.isnan([t_interval([0.5])[1], *t_interval([]), paired_t_test([0.5], [0.4])[2]]).all()
    assert paired_t_test([0.5, 0.6], [0.5, 0.6])[2] == 1
    assert paired_t_test([0.5, 0.6], [0.25, 0.35])[2] == 0
    assert bootstrap_interval(np.full(30, 0.25)) == (0.25, 0.25)
    assert bootstrap_interval(np.array([0.0, 1.0]), np.array([3, 3])) == (0.5, 0.5)
    assert np.isnan(bootstrap_interval(np.array([]))).all()


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_bootstrap_is_close_to_scipys(level: float) -> None:
    options = {"n_resamples": 9999, "method": "percentile", "confidence_level": level}
    expected = stats.bootstrap((scores(60),), np.mean, rng=np.random.default_rng(1), **options).confidence_interval
    assert bootstrap_interval(scores(60), level=level, resamples=9999) == pytest.approx(tuple(expected), abs=0.004)


@pytest.mark.parametrize("groups", [None, np.arange(37) // 5])
@pytest.mark.parametrize("draws", [1, 37, 259, 1000, 40_001])
def test_results_depend_on_the_seed_and_not_on_how_many_numbers_are_drawn_at_once(
    draws: int, groups: np.ndarray | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = scores(37), scores(37, 1)
    interval, test = bootstrap_interval(first, groups), paired_permutation_test(first, second)
    monkeypatch.setattr(statistics, "DRAWS", draws)
    assert bootstrap_interval(first, groups) == bootstrap_interval(first, groups, seed=0) == interval
    assert paired_permutation_test(first, second) == test
    assert bootstrap_interval(first, groups, seed=1) != interval
    assert paired_permutation_test(first, second, seed=1) != test


def test_committed_figures_stay() -> None:
    """Tables in results/ hold figures of these draws: the bits must not move."""
    values, groups = scores(40), np.arange(40) // 4
    assert bootstrap_interval(values) == (0.5976939300057882, 0.7367864795062296)
    assert bootstrap_interval(values, groups) == (0.5971436901363878, 0.7297547579853209)
    assert paired_permutation_test(values, scores(40, 1)) == (0.029259416348539603, 0.6083)
    assert t_interval(values[:5]) == (0.6376975074189625, 0.46780547799281874)
    assert paired_t_test(values[:5], scores(5, 1))[2] == 0.45479630226901974


def test_groups_are_drawn_whole_and_weigh_by_their_queries() -> None:
    groups = np.repeat(np.arange(20), 10)
    values = (groups % 2).astype(float)
    (low, high), (wide_low, wide_high) = bootstrap_interval(values), bootstrap_interval(values, groups)
    assert wide_high - wide_low > 2.5 * (high - low)  # the square root of 10, in the limit
    assert bootstrap_interval(scores(30), np.arange(30)) == bootstrap_interval(scores(30))
    values, groups = np.array([1.0] * 90 + [0.0] * 10), np.array(["big"] * 90 + ["small"] * 10)
    assert bootstrap_interval(values, groups) == (0.0, 1.0)
    assert bootstrap_interval(values, groups, level=0.4) == (0.9, 0.9)  # both classes, one of each: half of the draws


def test_intervals_leave_out_queries_without_a_positive() -> None:
    label, hit = np.array(["a", "a", "b", "b", "c"]), np.array([1.0, 1.0, 0.0, 1.0, np.nan])
    columns = {"query": np.arange(5), "label": label, "positives": np.array([1, 1, 1, 1, 0]), "first_rank": np.ones(5)}
    found = intervals({**columns, "recall_at_1": hit})
    assert found == {
        "recall_at_1_over_queries": bootstrap_interval(hit[:4]),
        "recall_at_1_over_classes": bootstrap_interval(hit[:4], label[:4]),
    }
    assert found["recall_at_1_over_classes"] == (0.5, 1.0)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=9))
@settings(deadline=None, max_examples=30)
def test_small_permutation_tests_are_exact(pairs: list[tuple[int, int]]) -> None:
    first, second = np.array(pairs).T
    difference, p = paired_permutation_test(first / 10, second / 10)  # sums are equal but for rounding
    assert difference == pytest.approx((first.mean() - second.mean()) / 10)
    assert p == pytest.approx(scipy_p(first, second))
    assert paired_permutation_test(second / 10, first / 10) == (-difference, p)


def test_equal_values_do_not_count_and_p_is_never_zero() -> None:
    assert paired_permutation_test(scores(50), scores(50)) == (0.0, 1.0)
    assert paired_permutation_test(np.arange(50) < 5, np.zeros(50)) == (0.1, 2 / 2**5)
    assert paired_permutation_test(np.ones(100), np.zeros(100), resamples=99) == (1.0, 0.01)


def test_swapping_classes_finds_less_than_swapping_their_queries() -> None:
    groups = np.repeat(["a", "b", "c", "d"], 10)
    first, second = np.where(groups == "d", 0.0, 1.0), np.where(groups == "d", 1.0, 0.0)
    difference, p = paired_permutation_test(first, second, groups)
    assert (difference, p) == (0.5, scipy_p(np.array([1.0, 1, 1, 0]), np.array([0.0, 0, 0, 1])))
    assert paired_permutation_test(first, second)[1] < 0.01 < p


@pytest.mark.parametrize(("first", "second"), [((3,), (4,)), ((0,), (0,)), ((2, 2), (2, 2))])
def test_what_cannot_be_paired_is_refused(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    with refused("same queries", first, second):
        paired_permutation_test(np.ones(first), np.zeros(second))
    with refused("NaN"):
        paired_permutation_test(np.array([0.5, np.nan]), np.array([0.5, np.nan]))
    with refused("groups"):
        bootstrap_interval(np.ones(4), np.zeros(3))


@given(p_values=st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=6))
def test_holm_rejects_what_its_steps_reject(p_values: list[float]) -> None:
    """At every level the smallest is compared with level / m, the next with level / (m - 1), until one is not below."""
    corrected = holm(p_values)
    valid = sorted((value, place) for place, value in enumerate(p_values) if not math.isnan(value))
    for level in (0.01, 0.05, 0.2, 0.7):
        rejected = set()
        for done, (value, place) in enumerate(valid):
            if value * (len(valid) - done) >= level:
                break
            rejected.add(place)
        assert {place for place, value in enumerate(corrected) if value < level} == rejected
    assert [math.isnan(value) for value in corrected] == [math.isnan(value) for value in p_values]
    assert all(math.isnan(value) or value <= 1 for value in corrected)
