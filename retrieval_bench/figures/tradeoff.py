"""Accuracy against cost: what a strategy's Recall@1 takes in compute, memory or time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.ticker import MaxNLocator, SymmetricalLogLocator

from retrieval_bench.answer import strategy_name
from retrieval_bench.columns import COSTS, column
from retrieval_bench.figures import style
from retrieval_bench.figures.style import Plot

RECALL = column("recall_at_1")
WIDE = 30
"""A range of costs beyond this ratio asks for a logarithmic axis, linear near 0."""
COSTS_DRAWN = tuple(name for name in COSTS if name != "latency_ms")
"""Records hold the fastest pass on whatever the machine did beside it: equal networks differ by a factor of two."""


def has_cost(rows: pd.DataFrame, cost: str) -> bool:
    """Whether at least two configurations were measured, at costs that differ by a hundredth or more (budgets are never
    met exactly), and where costs are of a machine, all on one with one number of threads."""
    if cost not in rows or "recall_at_1" not in rows:
        return False
    measured: Any = rows[rows["recall_at_1"].notna() & rows[cost].notna()]
    machines = [name for name in ("device", "threads") if name in measured and column(cost).of_machine]
    if machines and len(measured[machines].drop_duplicates()) > 1:
        return False
    return len(measured) > 1 and bool(measured[cost].max() > 1.01 * measured[cost].min())


@rc_context(style.STYLE)
def tradeoff(rows: pd.DataFrame, costs: Sequence[str] = COSTS_DRAWN, title: str = "") -> Plot | None:
    """Recall@1 against costs, a panel for each in which configurations differ (:func:`has_cost`): a point per
    configuration with its 95 % interval, and the line of those that no other one beats; one legend for all.

    Args:
        rows: of the leaderboard, one protocol: ``strategy`` (a label), ``recall_at_1`` and ``recall_at_1_ci95``
            (fractions; NaN for one seed), and the costs; NaN where one was not measured.
        costs: names in ``retrieval_bench.columns.COSTS``.
        title: of the plot, for instance the protocol's name.

    Returns:
        None where no cost differs.
    """
    costs = [cost for cost in costs if has_cost(rows, cost)]
    if not costs:
        return None
    rows = rows.dropna(subset=["recall_at_1"]).sort_values("recall_at_1", ascending=False)
    labels = list(map(str, rows["strategy"]))
    series = np.array(style.series_of(labels))
    values, halves = rows[["recall_at_1", "recall_at_1_ci95"]].to_numpy(dtype=np.float64).T / RECALL.scale
    low = fence(values)
    inside = values >= low
    figure = style.new_figure(2.3 * len(costs))
    panels: Any = figure.subplots(len(costs), 1, squeeze=False)
    fronts = []
    for axes, name in zip(panels.flat, costs, strict=True):
        amounts = rows[name].to_numpy(dtype=np.float64) / column(name).scale
        points = np.column_stack((amounts, values, halves))
        for one in sorted(set(series), key=[*series].index):
            look = style.look_of(one)
            draw_points(axes, points[(series == one) & inside], look, label=one, ls="none", ms=5)
        front = np.flatnonzero(pareto_front(amounts, values) & inside)
        front = front[np.lexsort((values[front], amounts[front]))]
        corners = np.repeat(points[front], 2, axis=0)  # level up to the next cost, then up
        axes.plot(corners[1:, 0], corners[:-1, 1], color="black", lw=1, alpha=0.5, zorder=1.5)
        axes.set(xlabel=column(name).axis, ylabel=RECALL.axis)
        _scale(axes, amounts[~np.isnan(amounts)])
        limit_values(axes, values[inside], halves[inside])
        names = dict.fromkeys(strategy_name(labels[row]) for row in front)
        fronts.append(f"{column(name).axis}: {', '.join(names)}")
    style.legend_below(panels[-1, 0])
    beyond = f" {(~inside).sum()} are too low to be shown." if (~inside).any() else ""
    summary = (
        f"Recall@1 against cost for {len(labels)} configurations.{beyond} Intervals that reach the edge go on beyond "
        f"it. The line joins those that no other one beats at their cost; by {'; by '.join(fronts)}."
    )
    return Plot(title or "Recall@1 against cost", summary, figure)


def _scale(axes: Any, costs: np.ndarray) -> None:
    """Logarithmic, linear near 0, where the costs ask for it; ticks that do not touch."""
    positive = costs[costs > 0]
    if len(positive) and positive.max() >= WIDE * positive.min():
        axes.set_xscale("symlog", linthresh=positive.min(), linscale=0.4)
        axes.xaxis.set_major_locator(SymmetricalLogLocator(linthresh=positive.min(), base=10))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:,g}")


def draw_points(axes: Any, points: np.ndarray, look: dict[str, Any], **line: Any) -> None:
    """Points (N, 3) of cost, value and half of its interval, NaN where it is not known, with bars for the intervals."""
    bars = points[points[:, 2] > 0]
    bar_look = {"fmt": "none", "ecolor": look["color"], "elinewidth": 0.8, "capsize": 1.5, "alpha": 0.35}
    axes.errorbar(*bars.T, **bar_look, zorder=2)
    axes.plot(*points[:, :2].T, **look, **line, mew=1.2, zorder=3)


def pareto_front(cost: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Bool (N,): no other point has a lower or equal cost and a higher or equal value, one of the two strictly. Equal
    points are on the front together; a point with NaN never is."""
    no_worse = (cost[:, None] <= cost) & (value[:, None] >= value)
    better = (cost[:, None] < cost) | (value[:, None] > value)
    return ~(np.isnan(cost) | np.isnan(value) | (no_worse & better).any(axis=0))


def fence(values: np.ndarray) -> float:
    """The lowest value that a figure has to reach: what is far below the others (Tukey's outer fence) would press them
    together."""
    known = values[~np.isnan(values)]
    first, third = np.quantile(known, (0.25, 0.75)) if len(known) else (0.0, 0.0)
    return float(known[known >= first - 3 * (third - first)].min()) if len(known) else 0.0


def limit_values(axes: Any, values: np.ndarray, halves: np.ndarray) -> None:
    """From the lowest to the highest value with some room; wide intervals, those of few seeds, may end outside."""
    if not len(values):
        return
    halves, span = np.nan_to_num(halves), np.ptp(values)
    usual, room = halves < 0.25 * (span + 1), 0.08 * max(span, 1.0)
    low = min([values.min(), *(values - halves)[usual]]) - room
    high = max([values.max(), *(values + halves)[usual]]) + 2.5 * room
    axes.set_ylim(max(low, -2), min(high, 103))
