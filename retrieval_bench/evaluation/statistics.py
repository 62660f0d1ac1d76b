"""How sure a figure is: bootstrap intervals over queries and over classes, a paired permutation test, and over seeds the t-interval and
the paired t-test, with Holm's correction.

All are seeded and draw from generators of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from retrieval_bench.errors import UserError
from retrieval_bench.seeding import derive

Values = Sequence[float] | np.ndarray
LEVEL = 0.05
"""p-value from which two rows are not told apart."""
SEEDS = 3
"""Fewest seeds of a row that is ranked, and of a pair of rows that is tested: differences of two seeds are often equal by chance."""
DRAWS = 1 << 22
"""Random numbers that are drawn at once, which bounds memory."""


@cache
def t_factor(count: int, level: float = 0.95) -> float:
    """Half width of the Student t-interval of `count` values in units of the mean's standard error; NaN for fewer than two."""
    from scipy import stats

    return float(stats.t.ppf((1 + level) / 2, count - 1)) if count > 1 else math.nan


def t_interval(values: Values, level: float = 0.95) -> tuple[float, float]:
    """Mean and half width of the Student t-interval of a few independent runs; the half width of a single one is NaN."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return float(values.mean()) if len(values) else math.nan, math.nan
    return float(values.mean()), float(t_factor(len(values), level) * values.std(ddof=1) / math.sqrt(len(values)))


def paired_t_test(first: Values, second: Values, level: float = 0.95) -> tuple[float, float, float]:
    """Mean difference of paired runs (first less second), half width of its t-interval, and the two-sided p-value of Student's paired test.

    Differences that are all the same leave nothing to chance: p is 0, or 1 where they are 0. Both are NaN for fewer than two pairs.
    """
    from scipy import stats

    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    mean, half = t_interval(differences, level)
    if len(differences) < 2:
        return mean, math.nan, math.nan
    if np.ptp(differences) <= 1e-12:
        return mean, half, float(abs(mean) <= 1e-12)
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    return mean, half, float(2 * stats.t.sf(abs(mean) / error, len(differences) - 1))


def bootstrap_interval(
    values: np.ndarray, groups: np.ndarray | None = None, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over queries (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3).

    Args:
        values: float (Q,), a metric's value for each query.
        groups: int (Q,), class of each query: whole classes are drawn in place of queries, since queries of a class share their images and
            succeed or fail together. It is the wider and more honest interval for statements about new classes.
        level: confidence.
        resamples: how many data sets are drawn.
        seed: of the draws.

    Returns:
        lower and upper end; NaN without queries.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        return math.nan, math.nan
    codes = _codes(values, groups)
    sums, sizes = np.bincount(codes, weights=values), np.bincount(codes)
    draws = np.random.Generator(np.random.PCG64(derive(seed, "bootstrap")))
    means, step = np.empty(resamples), max(1, DRAWS // len(sums))
    for start in range(0, resamples, step):
        chosen = draws.integers(0, len(sums), (min(step, resamples - start), len(sums)))
        means[start : start + step] = sums[chosen].sum(axis=1) / sizes[chosen].sum(axis=1)
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def intervals(columns: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of every metric of an evaluation: ``<metric>_over_queries`` and ``<metric>_over_classes``.

    Args:
        columns: :attr:`retrieval_bench.evaluation.evaluate.Evaluation.columns`.
    """
    kept = columns["positives"] > 0
    found: dict[str, tuple[float, float]] = {}
    for name, values in columns.items():
        if name not in ("query", "label", "positives", "first_rank"):
            found[f"{name}_over_queries"] = bootstrap_interval(values[kept])
            found[f"{name}_over_classes"] = bootstrap_interval(values[kept], columns["label"][kept])
    return found


def paired_permutation_test(
    first: np.ndarray, second: np.ndarray, groups: np.ndarray | None = None, resamples: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """Whether two runs differ on the same queries: the runs of each query (or of each class, whole) are swapped at random.

    Args:
        first: float (Q,), a metric's value for each query under one run.
        second: float (Q,), under the other, in the same order.
        groups: int (Q,), class of each query, to swap classes in place of queries.
        resamples: number of random swaps; all 2^n of them if those are fewer.
        seed: of the draws.

    Returns:
        difference of the means (first less second), and the two-sided p-value: (b + 1) / (m + 1) of Phipson and Smyth (2010), or exact.

    Raises:
        UserError: not the same number of queries.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise UserError(f"a paired test needs the same queries in both runs: found {first.shape} and {second.shape}")
    if not np.isfinite(first - second).all():
        raise UserError("a paired test needs a value of every query in both runs: some are NaN or infinite")
    codes = _codes(first, groups)
    sums = np.bincount(codes, weights=first - second)
    sums = sums[sums != 0]
    observed = abs(sums.sum())
    bound = (
        observed - 1e-9 * np.abs(sums).sum()
    )  # swaps that give the same difference but for rounding count as reaching it
    difference = float((first - second).mean())
    if 2 ** min(len(sums), 60) <= resamples + 1:
        signs = 1 - 2 * ((np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1)
        return difference, float((np.abs(signs @ sums) >= bound).mean())
    draws = np.random.Generator(np.random.PCG64(derive(seed, "permutation")))
    reached, step = 0, max(1, DRAWS // len(sums))
    for start in range(0, resamples, step):
        signs = draws.integers(0, 2, (min(step, resamples - start), len(sums)))
        reached += int((np.abs(sums.sum() - 2 * (signs @ sums)) >= bound).sum())
    return difference, (reached + 1) / (resamples + 1)


def _codes(values: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """int64 (Q,): numbers of the units that are drawn: queries, or the classes that `groups` names."""
    if groups is None:
        return np.arange(len(values))
    if np.shape(groups) != values.shape:
        raise UserError(f"groups: expected a class for each of {len(values)} queries, found shape {np.shape(groups)}")
    return np.unique(groups, return_inverse=True)[1]


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for being several (Holm, A simple sequentially rejective multiple test procedure, 1979): the smallest of m is
    multiplied by m, the next by m - 1 and so on, each at least the one before, at most 1. NaN stays and is not counted."""
    order = sorted(
        (place for place, value in enumerate(p_values) if not math.isnan(value)), key=lambda place: p_values[place]
    )
    corrected, least = list(p_values), 0.0
    for done, place in enumerate(order):
        least = max(least, min(1.0, (len(order) - done) * p_values[place]))
        corrected[place] = least
    return corrected
