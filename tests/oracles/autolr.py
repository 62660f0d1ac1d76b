"""AutoLR's arithmetic spelled out with loops over plain lists, from the formulas of the paper and the rules of its
code."""

from __future__ import annotations


def sorting_quality(values: list[float]) -> float:
    """Equation 9: how far each block's place is from its rank among the variations, equal ones in order."""
    count = len(values)
    distance = 0
    for place, value in enumerate(values):
        rank = sum(other < value for other in values) + sum(other == value for other in values[:place])
        distance += abs(place - rank)
    return 1 - 2 * distance / count**2


def initial_target(values: list[float], low: float, high: float) -> list[float]:
    """From low * min to high * max in equal steps."""
    first, last = low * min(values), high * max(values)
    return [first + place * (last - first) / (len(values) - 1) for place in range(len(values))]


def later_target(values: list[float]) -> list[float]:
    """From the middle downwards, then from the middle upwards."""
    target = list(values)
    step = (max(values) - min(values)) / (len(values) - 1)
    middle = len(values) // 2
    for place in reversed(range(middle)):
        if target[place] > target[place + 1]:
            target[place] = target[place + 1] - step
    for place in range(middle + 1, len(values)):
        if target[place] < target[place - 1]:
            target[place] = target[place - 1] + step
    return target
