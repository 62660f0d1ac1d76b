"""The arithmetic of AutoLR: thresholds, target variations and the learning rates that aim at them.

Ro and Choi, AutoLR (AAAI 2021, arXiv 2002.06048), in the spelling of the authors' code where it differs from the paper
(``retrieval_bench.strategies.autolr`` lists the differences). Pure functions; variations, targets and rates are float64
(K,), from the first block to the last.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Rules = Literal["code", "paper"]
SMALLEST_TARGET = 0.1
"""Targets are kept above this share of the smallest variation."""


def threshold_at(epoch: int, first: float = 0.94, decay: float = 0.99, floor: float = 0.8) -> float:
    """The sorting quality that `epoch` (from 0) must reach: `first`, times `decay` per later epoch while above `floor`.

    With the defaults it ends at 0.7924, from epoch 17 on.
    """
    threshold = first
    for _ in range(epoch):
        if threshold <= floor:
            break
        threshold *= decay
    return threshold


def is_sorted_enough(quality: float, threshold: float, rules: Rules = "code") -> bool:
    """Whether a pass is kept: Q, rounded to three decimals, reaches the threshold (code), or Q exceeds it (paper).

    NaN never does.
    """
    return quality > threshold if rules == "paper" else round(quality, 3) >= threshold


def initial_target(
    variation: np.ndarray, low: float = 2.0, high: float = 0.4, rules: Rules = "code"
) -> tuple[np.ndarray, bool]:
    """The ascending line that the first epoch aims at, from its first pass; and whether it had to be replaced.

    The line goes from ``low * min v`` to ``high * max v`` (code), or starts with the same step at ``min v`` (paper,
    equations 10 and 11). Where it would not ascend, since ``max v / min v`` is at most ``low / high``, it goes from
    ``min v`` to ``max v`` instead.
    """
    least, most, count = float(variation.min()), float(variation.max()), len(variation)
    if high * most <= low * least:
        return np.linspace(least, most, count), True
    step = (high * most - low * least) / max(1, count - 1)
    return (least if rules == "paper" else low * least) + step * np.arange(count), False


def later_target(variation: np.ndarray) -> np.ndarray:
    """What later epochs aim at, from their first failed pass: its variations, made ascending from the middle block on.

    A block below the middle that varies more than the next one is put a step below it, a block above the middle that
    varies less than the one before is put a step above that; the step is ``(max v - min v) / (K - 1)`` (equations 12 to
    14; 14 prints the sign of the first rule as plus, which cannot ascend). Values may be negative: see :func:`raised`.
    """
    target = np.array(variation, dtype=np.float64)
    count = len(target)
    step = (target.max() - target.min()) / max(1, count - 1)
    middle = count // 2
    for block in range(middle, 0, -1):
        if target[block] < target[block - 1]:
            target[block - 1] = target[block] - step
    for block in range(middle, count - 1):
        if target[block] > target[block + 1]:
            target[block + 1] = target[block] + step
    return target


def raised(target: np.ndarray, variation: np.ndarray) -> tuple[np.ndarray, int]:
    """An ascending target with its first values lifted above 0, still ascending, and how many were lifted.

    The authors' later targets fall below 0, and learning rates with them: gradient ascent. Values below a tenth of the
    smallest variation are spread evenly between that and the first value above it.
    """
    floor = SMALLEST_TARGET * float(variation.min())
    low = int(np.searchsorted(target, floor))
    if not low:
        return target, 0
    top = target[low] if low < len(target) else 2 * floor
    return np.concatenate([floor + (top - floor) * np.arange(low) / low, target[low:]]), low


def target_rates(
    rates: np.ndarray,
    variation: np.ndarray,
    target: np.ndarray,
    lowest: np.ndarray | float,
    highest: np.ndarray | float,
    ratio: float,
    ceiling: np.ndarray | float = np.inf,
) -> tuple[np.ndarray, int]:
    """``rate * target / v`` (equation 15, since v is proportional to the rate), and how many rates a bound changed:
    `lowest` and `highest` (one or K), and `ratio`, the most by which a rate is multiplied or divided. At last all are
    divided by one number so that none is above its `ceiling`, which keeps the order of what is proportional to them.
    Variations and targets are positive."""
    exact = rates * target / variation
    bounded = np.clip(np.clip(exact, rates / ratio, rates * ratio), lowest, highest)
    bounded = bounded / (bounded / ceiling).max(initial=1.0)
    return bounded, int((bounded != exact).sum())
