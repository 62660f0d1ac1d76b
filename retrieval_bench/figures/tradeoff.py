"""Accuracy against cost: what a strategy's Recall@1 takes in compute, memory or time."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.ticker import SymmetricalLogLocator

from retrieval_bench.columns import column
from retrieval_bench.figures import style
from retrieval_bench.figures.style import Plot

RECALL = column("recall_at_1")
WIDE = 30
"""A range of costs beyond this ratio asks for a logarithmic axis, linear near 0."""
LETTER = (0.02, 0.045)
"""Room of a letter, as shares of the axes."""


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
def tradeoff(rows: pd.DataFrame, cost: str = "macs", title: str = "") -> Plot:
    """Recall@1 against a cost, a point per configuration, with 95 % intervals and the line of those that no other one
    beats, whose points are numbered.

    Args:
        rows: of the leaderboard, one protocol: ``strategy`` (a label), ``recall_at_1`` and ``recall_at_1_ci95``
            (fractions; NaN for one seed), and the cost; NaN where it was not measured.
        cost: a name in ``retrieval_bench.columns.COSTS``.
        title: of the plot, for instance the protocol's name.
    """
    axis = column(cost).axis
    rows = rows.dropna(subset=[cost, "recall_at_1"]).sort_values("recall_at_1", ascending=False)
    labels = list(map(str, rows["strategy"]))
    costs = rows[cost].to_numpy(dtype=np.float64) / column(cost).scale
    values, halves = rows[["recall_at_1", "recall_at_1_ci95"]].to_numpy(dtype=np.float64).T / RECALL.scale
    points = np.column_stack((costs, values, halves))
    strategies = ["+".join(style.strategy_names(label)) for label in labels]
    figure = style.new_figure(3.6)
    axes = figure.subplots()
    for name in dict.fromkeys(strategies):
        look = style.look_of(name)
        own = points[[other == name for other in strategies]]
        draw_points(axes, own, look, label=name, ls="none", ms=7.5 if look["marker"] == "*" else 5.5)
    front = np.flatnonzero(pareto_front(costs, values))
    front = front[np.lexsort((values[front], costs[front]))]
    corners = np.repeat(points[front], 2, axis=0)  # level up to the next cost, then up
    axes.plot(corners[1:, 0], corners[:-1, 1], color="black", lw=1, alpha=0.5, zorder=1.5)
    axes.set(xlabel=axis, ylabel=RECALL.axis)
    positive = costs[costs > 0]
    if len(positive) and positive.max() >= WIDE * positive.min():
        axes.set_xscale("symlog", linthresh=positive.min(), linscale=0.4)
        axes.xaxis.set_major_locator(SymmetricalLogLocator(linthresh=positive.min(), base=10, subs=[1, 2, 5]))
    axes.xaxis.set_major_formatter("{x:,g}")
    limit_values(axes, values, halves)
    style.legend_below(axes)
    number_points(axes, points[front, :2], [labels[row] for row in front])
    low, high = axes.get_ylim()
    is_cropped = ((values - halves < low) | (values + halves > high)).any()
    best = ", ".join(f"{labels[row]} ({values[row]:.1f} %)" for row in front)
    summary = (
        f"Recall@1 against {axis} for {len(labels)} configurations; no other one is better and as cheap as {best}."
        f"{' Intervals that reach the edge go on beyond it.' if is_cropped else ''}"
    )
    return Plot(title or f"Recall@1 against {axis}", summary, figure)


def draw_points(axes: Any, points: np.ndarray, look: dict[str, Any], **line: Any) -> None:
    """Points (N, 3) of cost, value and half of its interval, NaN where it is not known, with bars for the intervals."""
    bars = points[points[:, 2] > 0]
    bar_look = {"fmt": "none", "ecolor": look["color"], "elinewidth": 0.8, "capsize": 1.5, "alpha": 0.6}
    axes.errorbar(*bars.T, **bar_look, zorder=2)
    axes.plot(*points[:, :2].T, **look, **line, mew=1.2, zorder=3)


def number_points(axes: Any, points: np.ndarray, labels: Sequence[str]) -> None:
    """Numbers the points (N, 2) of a front, costs ascending, and names them above the axes, whose limits are final. A
    number stands above and left of its point, where no other point can be, and higher if the one before is there."""
    axes.get_xlim()  # settles the limits
    places = axes.transLimits.transform(axes.transScale.transform(points)) + np.array([-0.008, 0.015])
    for number, (right, low) in enumerate(places, 1):
        before = [other[1] + LETTER[1] for other in places[: number - 1] if right - other[0] < LETTER[0]]
        places[number - 1, 1] = max([low, *before])
        at = {"xycoords": "axes fraction", "ha": "right", "va": "bottom"}
        axes.annotate(str(number), places[number - 1], fontsize=style.SMALL, **at)
    names = [f"{number} {label}".replace(" ", "\N{NO-BREAK SPACE}") for number, label in enumerate(labels, 1)]
    lines = textwrap.wrap(";  ".join(names), 88, break_on_hyphens=False)
    axes.set_title("\n".join(lines), loc="left", fontsize=style.SMALL)
    width, height = axes.figure.get_size_inches()
    axes.figure.set_size_inches(width, height + 0.13 * len(lines))


def pareto_front(cost: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Bool (N,): no other point has a lower or equal cost and a higher or equal value, one of the two strictly. Equal
    points are on the front together; a point with NaN never is."""
    no_worse = (cost[:, None] <= cost) & (value[:, None] >= value)
    better = (cost[:, None] < cost) | (value[:, None] > value)
    return ~(np.isnan(cost) | np.isnan(value) | (no_worse & better).any(axis=0))


def limit_values(axes: Any, values: np.ndarray, halves: np.ndarray) -> None:
    """From the lowest to the highest value with some room; wide intervals, those of few seeds, may end outside."""
    if not len(values):
        return
    halves, span = np.nan_to_num(halves), np.ptp(values)
    usual, room = halves < 0.25 * (span + 1), 0.08 * max(span, 1.0)
    low = min([values.min(), *(values - halves)[usual]]) - room
    high = max([values.max(), *(values + halves)[usual]]) + 2.5 * room
    axes.set_ylim(max(low, -2), min(high, 103))
