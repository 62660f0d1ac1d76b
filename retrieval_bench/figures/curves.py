"""Training losses over epochs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context

from retrieval_bench.figures import style
from retrieval_bench.figures.style import Plot
from retrieval_bench.records import Record

MOST = 12
"""With more configurations than this in a panel the legend names strategies only."""


@rc_context(style.STYLE)
def learning_curves(records_by_row: Mapping[str, Sequence[Record]], title: str = "") -> Plot | None:
    """Mean training loss per epoch, a line per row with the range over its seeds, a panel per kind of loss.

    Runs of fewer than two epochs are left out; None if that is all of them.
    """
    panels: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for label, records in sorted(records_by_row.items()):
        runs = [record.loss_per_epoch for record in records if len(record.loss_per_epoch) > 1]
        if runs:
            longest = max(map(len, runs))  # NaN after the end of shorter runs and where the loss was not finite
            losses = np.array([[*run, *[None] * (longest - len(run))] for run in runs], dtype=float)
            panels[records[0].config["loss"]["loss"]][label] = losses
    if not panels:
        return None
    figure = style.new_figure(2.4 * len(panels))
    rows: Any = figure.subplots(len(panels), 1, squeeze=False)
    for axes, (loss, curves) in zip(rows.flat, sorted(panels.items()), strict=True):
        looks = [style.look_of(label) for label in curves]
        for number, (label, losses) in enumerate(curves.items()):
            look = looks[number] | style.line_style(looks, number)
            _curve(axes, losses, label if len(curves) <= MOST else "+".join(style.strategy_names(label)), look)
        style.epoch_axis(axes, ylabel=f"training loss, {loss}")
        known = np.concatenate([losses[~np.isnan(losses)] for losses in curves.values()])
        if len(known) and known.min() > 0 and known.max() > 4 * known.min():
            axes.set_yscale("log")
            axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.minorticks_off()
        style.legend_below(axes)
    count, losses_shown = sum(map(len, panels.values())), ", ".join(sorted(panels))
    summary = f"Mean training loss per epoch of {count} configurations, in a panel for each of {losses_shown}."
    return Plot(title or "Training loss per epoch", summary, figure)


def _curve(axes: Any, losses: np.ndarray, label: str, look: dict[str, Any]) -> None:
    """The mean of `losses` (seeds, epochs) as a line, and their range as a band."""
    losses = losses[:, ~np.isnan(losses).all(axis=0)]
    epochs = np.arange(1, losses.shape[1] + 1)
    if len(losses) > 1:
        low, high = np.nanmin(losses, axis=0), np.nanmax(losses, axis=0)
        axes.fill_between(epochs, low, high, color=look["color"], alpha=0.15, lw=0)
    axes.plot(epochs, np.nanmean(losses, axis=0), lw=1.2, markevery=max(1, len(epochs) // 10), **look, label=label)
