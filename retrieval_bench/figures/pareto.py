"""Which configurations no other one beats."""

from __future__ import annotations

import numpy as np


def pareto_front(cost: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Bool (N,): no other point costs as little or less and is worth as much or more, one of the two strictly.

    Equal points are on the front together; a point with NaN never is.

    Args:
        cost: (N,) numbers, lower is better.
        value: (N,) numbers, higher is better.
    """
    cost, value = np.asarray(cost, dtype=np.float64), np.asarray(value, dtype=np.float64)
    front = np.zeros(len(cost), dtype=bool)
    known = np.flatnonzero(~(np.isnan(cost) | np.isnan(value)))
    order = known[np.lexsort((-value[known], cost[known]))]
    best, at = -np.inf, np.nan
    for place in order:  # cheapest first, the most worth first among equally cheap
        if value[place] > best or (value[place] == best and cost[place] == at):
            front[place], best, at = True, value[place], cost[place]
    return front
