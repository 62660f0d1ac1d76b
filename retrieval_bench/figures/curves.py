"""Training losses over epochs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context

from retrieval_bench.answer import strategy_name
from retrieval_bench.figures import style
from retrieval_bench.figures.style import Plot
from retrieval_bench.records import Record

PANELS = 2
"""Panels beside each other."""


@rc_context(style.STYLE)
def learning_curves(records_by_row: Mapping[str, Sequence[Record]], title: str = "") -> Plot | None:
    """Mean training loss per epoch, a panel per strategy and kind of loss: its first row, the best one of a
    leaderboard's, as a line with the range over its seeds, others as faint lines. Panels of one loss share their axis.

    Runs of fewer than two epochs are left out; None if that is all of them.
    """
    panels: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    for label, records in records_by_row.items():
        runs = [record.loss_per_epoch for record in records if len(record.loss_per_epoch) > 1]
        if runs:
            longest = max(map(len, runs))  # NaN after the end of shorter runs and where the loss was not finite
            losses = np.array([[*run, *[None] * (longest - len(run))] for run in runs], dtype=float)
            panels[records[0].config["loss"]["loss"], strategy_name(label)].append(losses)
    if not panels:
        return None
    lines = -(-len(panels) // PANELS)
    several = len({loss for loss, _ in panels}) > 1
    figure = style.new_figure(0.3 + (1.25 if several else 1.1) * lines)
    grid: Any = figure.subplots(lines, PANELS, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, ((loss, name), curves) in zip(grid.flat, sorted(panels.items()), strict=False):
        for losses in curves[:0:-1][-style.SERIES + 1 :]:
            axes.plot(*_mean(losses), color="black", lw=0.7, alpha=0.3)
        epochs, mean = _mean(curves[0])
        look = style.look_of(name)
        if len(curves[0]) > 1:
            known = curves[0][:, ~np.isnan(curves[0]).all(axis=0)]
            low, high = np.nanmin(known, axis=0), np.nanmax(known, axis=0)
            axes.fill_between(epochs, low, high, color=look["color"], alpha=0.2, lw=0)
        axes.plot(epochs, mean, lw=1.4, markevery=max(1, len(epochs) // 10), **look, label=name)
        axes.set_title(f"{name}\n{loss}" if several else name, fontsize=style.SMALL, pad=3, loc="left")
        axes.xaxis.get_major_locator().set_params(integer=True)
        others = [np.concatenate([part.ravel() for part in own]) for (kind, _), own in panels.items() if kind == loss]
        _share(axes, np.concatenate(others))
    figure.supxlabel("epoch", fontsize=style.TEXT)
    figure.supylabel("training loss", fontsize=style.TEXT)
    count, losses_shown = sum(map(len, panels.values())), ", ".join(sorted({loss for loss, _ in panels}))
    summary = (
        f"Mean training loss ({losses_shown}) per epoch of {count} configurations, a panel per strategy: the best "
        f"configuration with the range over its seeds, others faint."
    )
    return Plot(title or "Training loss per epoch", summary, figure)


def _mean(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Epochs from 1 and the mean over seeds of `losses` (seeds, epochs)."""
    losses = losses[:, ~np.isnan(losses).all(axis=0)]
    return np.arange(1, losses.shape[1] + 1), np.nanmean(losses, axis=0)


def _share(axes: Any, losses: np.ndarray) -> None:
    """One axis for all panels of a loss, logarithmic over a wide range."""
    known = losses[~np.isnan(losses)]
    if not len(known):
        return
    low, high = known.min(), known.max()
    if low > 0 and high > 4 * low:
        axes.set_yscale("log")
        axes.yaxis.get_major_locator().set_params(subs=(1, 3))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_ylim(low / 1.1, high * 1.1)
    else:
        room = 0.06 * max(high - low, 1e-3)
        axes.set_ylim(low - room, high + room)
