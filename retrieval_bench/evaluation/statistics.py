"""How sure a figure is: over queries and classes seeded bootstrap intervals and permutation tests, over seeds
Student's t."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from scipy import special

from retrieval_bench.errors import UserError
from retrieval_bench.seeding import derive

Values = Sequence[float] | np.ndarray
LEVEL = 0.05
"""p-value below which two rows differ significantly."""
SEEDS = 3
"""Fewest seeds of a row that is ranked and of a pair that is tested: two differences are often equal by chance."""
DRAWS = 1 << 22
"""Random numbers that are drawn at once, which bounds memory."""


@cache
def _t_factor(count: int, level: float) -> float:
    return float(special.stdtrit(count - 1, (1 + level) / 2))


def t_interval(values: Values, level: float = 0.95) -> tuple[float, float]:
    """Mean and half width of Student's t-interval of a few independent runs; the half width of a single one is NaN."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return float(values.mean()) if len(values) else math.nan, math.nan
    return float(values.mean()), float(_t_factor(len(values), level) * values.std(ddof=1) / math.sqrt(len(values)))


def paired_t_test(first: Values, second: Values) -> tuple[float, float, float]:
    """Mean of paired differences (first less second), half width of its t-interval, and two-sided p-value of the paired
    t-test; both NaN for fewer than two pairs. Of differences that are all the same p is 0, or 1 where they are 0."""
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    mean, half = t_interval(differences)
    if len(differences) < 2:
        return mean, math.nan, math.nan
    if np.ptp(differences) <= 1e-12:
        return mean, half, float(abs(mean) <= 1e-12)
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    return mean, half, float(2 * special.stdtr(len(differences) - 1, -abs(mean) / error))


def bootstrap_interval(
    values: np.ndarray, groups: np.ndarray | None = None, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Ends of the percentile bootstrap interval of a mean over queries (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, 13.3); NaN without queries.

    Args:
        values: float (Q,), a metric's value for each query.
        groups: int or text (Q,), class of each query: whole classes are drawn in place of queries, since queries of a
            class share their images and succeed or fail together; the wider and more honest interval for new classes.
        level: confidence.
        resamples: how many data sets are drawn.
        seed: of the draws.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        return math.nan, math.nan
    codes = _codes(values, groups)
    sums, sizes = np.bincount(codes, weights=values), np.bincount(codes)
    draws, means = np.random.Generator(np.random.PCG64(derive(seed, "bootstrap"))), np.empty(resamples)
    for part in _parts(resamples, len(sums)):
        chosen = draws.integers(0, len(sums), (part.stop - part.start, len(sums)))
        means[part] = sums[chosen].sum(axis=1) / sizes[chosen].sum(axis=1)
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def intervals(columns: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of metrics in ``Evaluation.columns``: ``<metric>_over_queries``, ``_over_classes``."""
    kept = columns["positives"] > 0
    found: dict[str, tuple[float, float]] = {}
    for name in (name for name in columns if name not in ("query", "label", "positives", "first_rank")):
        found[f"{name}_over_queries"] = bootstrap_interval(columns[name][kept])
        found[f"{name}_over_classes"] = bootstrap_interval(columns[name][kept], columns["label"][kept])
    return found


def paired_permutation_test(
    first: np.ndarray, second: np.ndarray, groups: np.ndarray | None = None, resamples: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """Whether two runs differ on the same queries: the runs of each query (or whole class) are swapped at random.

    Args:
        first: float (Q,), a metric's value for each query under one run; `second` under the other.
        groups: int or text (Q,), class of each query, to swap classes in place of queries.
        resamples: number of random swaps; all 2^n of them if those are fewer.
        seed: of the draws.

    Returns:
        difference of means (first less second); two-sided p-value, exact or (b+1) / (m+1) of Phipson and Smyth (2010).

    Raises:
        UserError: not the same number of queries, or a query without a value.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise UserError(f"a paired test needs the same queries in both runs: found {first.shape} and {second.shape}")
    if not np.isfinite(first - second).all():
        raise UserError("a paired test needs a value of every query in both runs: some are NaN or infinite")
    sums = np.bincount(_codes(first, groups), weights=first - second)
    sums = sums[sums != 0]
    bound = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()  # the same difference but for rounding reaches it
    difference = float((first - second).mean())
    if 2 ** min(len(sums), 60) <= resamples + 1:
        signs = 1 - 2 * ((np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1)
        return difference, float((np.abs(signs @ sums) >= bound).mean())
    draws, reached = np.random.Generator(np.random.PCG64(derive(seed, "permutation"))), 0
    for part in _parts(resamples, len(sums)):
        swapped = draws.integers(0, 2, (part.stop - part.start, len(sums)))
        reached += int((np.abs(sums.sum() - 2 * (swapped @ sums)) >= bound).sum())
    return difference, (reached + 1) / (resamples + 1)


def _parts(resamples: int, units: int) -> Iterator[slice]:
    """The resamples in parts of at most about :data:`DRAWS` numbers, `units` each."""
    step = max(1, DRAWS // units)
    return (slice(start, min(start + step, resamples)) for start in range(0, resamples, step))


def _codes(values: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """int64 (Q,): numbers of the units that are drawn: queries, or the classes that `groups` names."""
    if groups is None:
        return np.arange(len(values))
    if np.shape(groups) != values.shape:
        raise UserError(f"groups: expected a class for each of {len(values)} queries, found shape {np.shape(groups)}")
    return np.unique(groups, return_inverse=True)[1]


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for being several (Holm, A simple sequentially rejective multiple test procedure, 1979): the
    smallest of m times m, the next times m - 1, ..., each at least the one before, at most 1. NaN is not counted."""
    order = [int(number) for number in np.argsort(p_values, kind="stable") if not math.isnan(p_values[number])]
    corrected, least = list(p_values), 0.0
    for done, number in enumerate(order):
        least = max(least, min(1.0, (len(order) - done) * p_values[number]))
        corrected[number] = least
    return corrected
