"""Accuracy against cost: what a strategy's Recall@1 takes in compute, memory or time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.ticker import SymmetricalLogLocator

from retrieval_bench.columns import column
from retrieval_bench.figures import style
from retrieval_bench.figures.style import Plot, plain

RECALL = column("recall_at_1")
WIDE = 30
"""A range of costs beyond this ratio asks for a logarithmic axis, linear near 0."""
STEPS = (1.0, 0.5, 0.0, -0.5, -1.0)
SIDES = [(right, up) for right in STEPS for up in STEPS if max(abs(right), abs(up)) == 1]
"""Directions from a point to its label."""
DISTANCES = (7, 13, 20, 28, 38, 50)
"""Typographic points from a point to its label, the nearest first."""


def has_cost(rows: pd.DataFrame, cost: str) -> bool:
    """Whether at least two configurations were measured, at costs that differ by a hundredth or more (budgets are never
    met exactly)."""
    if cost not in rows or "recall_at_1" not in rows:
        return False
    costs = rows.loc[rows["recall_at_1"].notna(), cost].dropna()
    return len(costs) > 1 and bool(costs.max() > 1.01 * costs.min())


@rc_context(style.STYLE)
def tradeoff(rows: pd.DataFrame, cost: str = "macs", title: str = "") -> Plot:
    """Recall@1 against a cost, a point per configuration, with 95 % intervals and the line of those that no other one
    beats.

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
    strategies = ["+".join(style.strategy_names(label)) for label in labels]
    legend = list(dict.fromkeys(strategies))
    figure = style.new_figure(3.6, legend=legend)
    axes = figure.subplots()
    for name in legend:
        own, look = np.array([other == name for other in strategies]), style.look_of(name)
        bars = own & (halves > 0)
        bar_look = {"fmt": "none", "ecolor": look["color"], "elinewidth": 0.8, "capsize": 1.5, "alpha": 0.6}
        axes.errorbar(costs[bars], values[bars], halves[bars], **bar_look, zorder=2)
        size = 7.5 if look["marker"] == "*" else 5.5
        axes.plot(costs[own], values[own], ls="none", ms=size, mew=1.2, **look, label=plain(name), zorder=3)
    front = np.flatnonzero(pareto_front(costs, values))
    front = front[np.lexsort((values[front], costs[front]))]
    points = np.column_stack((costs, values))
    corners = np.repeat(points[front], 2, axis=0)
    line = np.column_stack((corners[1:, 0], corners[:-1, 1]))  # level up to the next cost, then up
    axes.plot(*line.T, color="black", lw=1, alpha=0.5, zorder=1.5)
    axes.set(xlabel=axis, ylabel=RECALL.axis)
    positive = costs[costs > 0]
    if len(positive) and positive.max() >= WIDE * positive.min():
        axes.set_xscale("symlog", linthresh=positive.min(), linscale=0.4)
        axes.xaxis.set_major_locator(SymmetricalLogLocator(linthresh=positive.min(), base=10, subs=[1, 2, 5]))
    axes.xaxis.set_major_formatter("{x:,g}")
    limit_values(axes, values, halves)
    if legend:
        style.legend_below(figure, legend, handletextpad=0.4)
    shorter = style.short_labels(labels)
    place_labels(axes, points[front], [shorter[row] for row in front], points, line)
    low, high = axes.get_ylim()
    is_cropped = ((values - halves < low) | (values + halves > high)).any()
    best = ", ".join(f"{labels[row]} ({values[row]:.1f} %)" for row in front)
    summary = (
        f"Recall@1 against {axis} for {len(labels)} configurations; no other one is better and as cheap as {best}."
        f"{' Intervals that reach the edge go on beyond it.' if is_cropped else ''}"
    )
    return Plot(title or f"Recall@1 against {axis}", summary, figure)


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


def place_labels(axes: Any, points: np.ndarray, labels: Sequence[str], marks: np.ndarray, line: np.ndarray) -> None:
    """Writes a label beside each of `points` (N, 2) where it covers neither another label, nor one of the `marks`
    (M, 2), nor the `line` (L, 2), all in the units of the axes; a thin line leads to the far ones. It needs the final
    layout, so it comes last."""
    axes.figure.draw_without_rendering()
    unit, frame = axes.figure.dpi / 72, np.array([axes.get_window_extent().extents])
    corners = axes.transData.transform(line)
    along = [start + (end - start) * part for start, end in pairwise(corners) for part in np.linspace(0, 1, 60)]
    boxes = [np.concatenate((at - unit, at + unit)) for at in along]
    boxes += [np.concatenate((at - 5 * unit, at + 5 * unit)) for at in axes.transData.transform(marks)]
    side, distance = np.tile(SIDES, (len(DISTANCES), 1)), np.repeat(DISTANCES, len(SIDES)) * unit
    for point, label in zip(points, labels, strict=True):
        text = plain(label).replace("(", "\n(", 1) if len(label) > style.LONG_LABEL else plain(label)
        options = {"textcoords": "offset points", "in_layout": False}
        note = axes.annotate(text, point, xytext=(0, 0), fontsize=style.SMALL, va="center", **options)
        size, at = np.array(note.get_window_extent().size), axes.transData.transform(point)
        starts = at + distance[:, None] * side + size * (side - 1) / 2
        choices = np.column_stack((starts, starts + size))
        outside = 10 * (size.prod() - _overlap(choices, frame)[:, 0])  # counts more than what covers something
        chosen = int((distance + outside + 5 * _overlap(choices, np.array(boxes)).sum(axis=1)).argmin())
        left, bottom, right, top = choices[chosen]
        boxes.append(np.array([left - 3 * unit, bottom, right + 3 * unit, top]))
        note.set_position(((left - at[0]) / unit, ((bottom + top) / 2 - at[1]) / unit))
        if chosen >= len(SIDES):
            end = (np.clip(at, (left, bottom), (right, top)) - at) / unit
            arrow = {"arrowstyle": "-", "lw": 0.5, "color": "black", "alpha": 0.5, "shrinkA": 0, "shrinkB": 3}
            axes.annotate("", point, xytext=tuple(end), arrowprops=arrow, **options)


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N, M) areas that N boxes share with M others; a box is left, bottom, right, top."""
    ends = np.minimum(boxes[:, None, 2:], others[:, 2:])
    return (ends - np.maximum(boxes[:, None, :2], others[:, :2])).clip(min=0).prod(axis=-1)
