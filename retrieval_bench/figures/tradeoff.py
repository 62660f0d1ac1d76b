"""Accuracy against cost: what a strategy's Recall@1 takes in compute, memory or time."""

from __future__ import annotations

from typing import Any

import numpy as np

from retrieval_bench.figures.canvas import SMALL, WIDTH, Picture, dress, new_figure, plain
from retrieval_bench.figures.colours import look_of, parts
from retrieval_bench.figures.labels import place_labels, short_labels
from retrieval_bench.figures.pareto import pareto_front

COSTS = {
    "macs": (1e6, "multiply-accumulates per image, millions"),
    "parameters": (1e6, "parameters, millions"),
    "latency_ms": (1, "latency of one image, milliseconds"),
    "images_seen": (1e3, "images seen in training, thousands"),
    "train_seconds": (1, "training, seconds"),
}
"""Per cost: what it is divided by, and its label."""
PERCENT = 100
WIDE = 30
"""A range of costs beyond this ratio asks for a logarithmic axis."""


def has_cost(table: Any, cost: str) -> bool:
    """Whether at least two configurations were measured, at costs that differ by a hundredth or more (budgets are never met exactly)."""
    if cost not in table or "recall_at_1" not in table:
        return False
    known = table.loc[table["recall_at_1"].notna(), cost].dropna()
    return len(known) > 1 and bool(known.max() > 1.01 * known.min())


def tradeoff(table: Any, cost: str = "macs", title: str = "") -> Picture:
    """Recall@1 against a cost, a point per configuration, with 95 % intervals and the line of those that no other one beats.

    Args:
        table: a line per configuration of one protocol: ``strategy`` (label), ``recall_at_1`` and ``recall_at_1_ci95`` (fractions; the
            interval NaN for one seed), and the cost; NaN where it was not measured.
        cost: a name in :data:`COSTS`.
        title: of the picture, for instance the protocol's name.
    """
    unit, axis = COSTS[cost]
    shown = table[table[cost].notna() & table["recall_at_1"].notna()].sort_values("recall_at_1", ascending=False)
    labels = list(map(str, shown["strategy"]))
    costs = shown[cost].to_numpy(dtype=np.float64) / unit
    values, halves = (PERCENT * shown[name].to_numpy(dtype=np.float64) for name in ("recall_at_1", "recall_at_1_ci95"))
    names = list(dict.fromkeys("+".join(parts(label)) for label in labels))
    figure = new_figure((WIDTH, 3.6 + 0.16 * -(-len(names) // columns(names))))
    axes = figure.subplots()
    for name in names:
        rows = [row for row, label in enumerate(labels) if "+".join(parts(label)) == name]
        draw_points(axes, name, costs[rows], values[rows], np.nan_to_num(halves[rows]))
    front = np.flatnonzero(pareto_front(costs, values))
    front = front[np.lexsort((values[front], costs[front]))]
    line = np.repeat(np.column_stack((costs, values))[front], 2, axis=0)
    line = np.column_stack((line[1:, 0], line[:-1, 1]))  # level up to the next cost, then up
    axes.plot(*line.T, color="black", lw=1, alpha=0.5, zorder=1.5)
    dress(axes, xlabel=axis, ylabel="Recall@1, %")
    scale(axes, costs)
    limits(axes, values, halves)
    if names:
        figure.legend(
            loc="outside lower center",
            ncols=columns(names),
            frameon=False,
            fontsize=SMALL,
            columnspacing=1.2,
            handletextpad=0.4,
        )
    shorter = short_labels(labels)
    place_labels(
        axes,
        np.column_stack((costs, values))[front],
        [shorter[row] for row in front],
        np.column_stack((costs, values)),
        line,
    )
    on_front = ", ".join(f"{labels[row]} ({values[row]:.1f} %)" for row in front)
    low, high = axes.get_ylim()
    cut = (
        " Intervals that reach the edge go on beyond it."
        if ((values - halves < low) | (values + halves > high)).any()
        else ""
    )
    text = f"Recall@1 against {axis} for {len(labels)} configurations; no other one is better and as cheap as {on_front}.{cut}"
    return Picture(title or f"Recall@1 against {axis}", text, figure)


def draw_points(axes: Any, name: str, costs: np.ndarray, values: np.ndarray, halves: np.ndarray) -> None:
    """Points in the look of a strategy, and bars of half width `halves` where it is not 0."""
    look = look_of(name)
    seen = halves > 0
    axes.errorbar(
        costs[seen],
        values[seen],
        halves[seen],
        fmt="none",
        ecolor=look.colour,
        elinewidth=0.8,
        capsize=1.5,
        alpha=0.6,
        zorder=2,
    )
    size = {"marker": look.marker, "ms": 7.5 if look.marker == "*" else 5.5, "mew": 1.2}
    axes.plot(costs, values, ls="none", **size, color=look.colour, mec=look.edge, label=plain(name), zorder=3)


def columns(names: list[str]) -> int:
    """How many columns of a legend fit below a figure for a page."""
    return max(1, min(4, len(names), int(85 / (max(map(len, names), default=1) + 6))))


def scale(axes: Any, costs: np.ndarray) -> None:
    """A logarithmic axis for a wide range, linear near 0 where there is a cost of 0; plain numbers as ticks."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.ticklabel_format(axis="x", useOffset=False, style="plain")
    above = costs[costs > 0]
    if not len(above) or above.max() < WIDE * above.min():
        return
    low = 10 ** np.floor(np.log10(above.min()))
    ticks = [step * low * 10**power for power in range(9) for step in (1, 2, 5)]
    if costs.min() > 0:
        axes.set_xscale("log")
    else:
        axes.set_xscale("symlog", linthresh=above.min(), linscale=0.4)
        ticks = [0, *(tick for tick in ticks if tick >= above.min())]
    left, right = axes.get_xlim()
    axes.set_xticks([tick for tick in ticks if left <= tick <= right])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def limits(axes: Any, values: np.ndarray, halves: np.ndarray) -> None:
    """From the lowest to the highest value with some room; intervals may end outside, since those of few seeds are wide."""
    if not len(values):
        return
    halves = np.nan_to_num(halves)
    room, usual = 0.08 * max(np.ptp(values), 1.0), halves < 0.25 * (np.ptp(values) + 1)
    low = min([values.min(), *(values - halves)[usual]]) - room
    high = max([values.max(), *(values + halves)[usual]]) + 2.5 * room
    axes.set_ylim(max(low, -2), min(high, PERCENT + 3))
