"""The answer as a forest plot: strategies in order with their intervals, and in words how each stands."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.transforms import blended_transform_factory

from retrieval_bench.answer import BASELINES
from retrieval_bench.figures import style
from retrieval_bench.figures.style import Plot
from retrieval_bench.figures.tradeoff import RECALL, fence

ROW = 0.175
"""Inches of a row."""
LONGEST = 27
"""Letters of a name."""


@rc_context(style.STYLE)
def forest(rows: Any, title: str = "") -> Plot | None:
    """Recall@1 of each strategy with its 95 % interval over seeds, the best on top, its value and verdict in words
    beside it; a hollow point has one seed, an arrow stands for a value far below the others. Faint lines continue the
    baselines'.

    Args:
        rows: of one protocol, :func:`retrieval_bench.answer.best_of_each`.
        title: of the plot.

    Returns:
        None for fewer than two strategies.
    """
    if len(rows) < 2:
        return None
    values, halves = rows[["recall_at_1", "recall_at_1_ci95"]].to_numpy(dtype=np.float64).T / RECALL.scale
    names, verdicts = list(rows["name"]), list(rows["verdict"])
    figure = style.new_figure(0.55 + ROW * len(rows))
    axes = figure.subplots()
    is_baseline = np.isin(names, list(BASELINES))
    low = min([fence(values), *values[is_baseline]])
    inside = values >= low
    ends = [*(values - np.nan_to_num(halves))[inside], *(values + np.nan_to_num(halves))[inside]]
    room = 0.06 * max(np.ptp(values[inside]), 1.0)
    left, right = max(min(ends), low - 4 * room) - room, min(max(ends), values.max() + 4 * room) + room
    beside = blended_transform_factory(axes.transAxes, axes.transData)
    for place, (value, half, verdict) in enumerate(zip(values, halves, verdicts, strict=True)):
        look: dict[str, Any] = {"color": style.BEST if verdict == "best" else "black"}
        look["alpha"] = 0.55 if verdict == "below" else 1.0
        if half > 0 and value >= low:
            axes.plot([value - half, value + half], [place, place], lw=1.3, solid_capstyle="butt", **look)
        known: dict[str, Any] = {} if half == half else {"mfc": "none"}
        point, marker = (value, "o") if value >= low else (left + 0.6 * room, "<")
        axes.plot(point, place, marker=marker, ms=4.5, ls="none", **look, **known)
        words: dict[str, Any] = {"fontweight": "bold"} if verdict == "best" else {}
        for offset, text in ((6, f"{value:.1f}"), (29, verdict)):
            at: dict[str, Any] = {"xycoords": beside, "textcoords": "offset points", "va": "center"}
            axes.annotate(text, (1, place), (offset, 0), fontsize=style.SMALL, **at, **look, **words)
    for value in values[is_baseline]:
        axes.axvline(value, color="black", lw=0.7, ls=":", alpha=0.5, zorder=1)
    axes.set_yticks(range(len(rows)), list(map(_label, rows.to_dict("records"), [_usual(rows)] * len(rows))))
    axes.set(xlim=(left, right), ylim=(len(rows) - 0.4, -0.6), xlabel=RECALL.axis)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    listed = ", ".join(
        f"{name} {value:.1f} ({verdict})" for name, value, verdict in zip(names, values, verdicts, strict=True)
    )
    return Plot(title or "Recall@1 of each strategy", f"Recall@1 by strategy, in percent: {listed}.", figure)


def _usual(rows: Any) -> Any:
    return rows.loc[rows["trained"], "epochs"].mode().get(0)


def _label(row: Any, usual: Any) -> str:
    """A strategy's name, and its epochs where others trained longer or shorter."""
    is_other = row["trained"] and row["epochs"] != usual
    name, epochs = row["name"], f", {row['epochs']:.0f} ep." if is_other else ""
    room = LONGEST - len(epochs)
    return (name if len(name) <= room else f"{name[: room - 1]}…") + epochs
