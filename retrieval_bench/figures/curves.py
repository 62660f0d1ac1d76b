"""Training losses over epochs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retrieval_bench.figures.canvas import SMALL, WIDTH, Picture, dress, new_figure, plain
from retrieval_bench.figures.colours import Look, look_of, parts
from retrieval_bench.figures.labels import short_labels
from retrieval_bench.figures.tradeoff import columns
from retrieval_bench.records import Record

MOST = 12
"""With more configurations than this in a panel the legend names strategies only."""
STYLES = ("-", "--", ":", "-.")
Curves = dict[str, np.ndarray]
"""Losses (seeds, epochs) by label."""


def learning_curves(
    records: Sequence[Record], names: Mapping[str, str] | None = None, title: str = ""
) -> Picture | None:
    """Mean training loss per epoch, a line per configuration with the range over its seeds, a panel per kind of loss.

    Args:
        records: of one protocol; runs of fewer than two epochs are left out.
        names: labels by ``config_hash``, where the strategy's own says too little.
        title: of the picture.

    Returns:
        None if no run has two epochs.
    """
    panels = _panels(records, names or {})
    if not panels:
        return None
    legends = [_legend(list(curves)) for curves in panels.values()]
    heights = [2.4 + 0.16 * -(-len(set(labels)) // columns(labels)) for labels in legends]
    figure = new_figure((WIDTH, sum(heights)))
    panes: Any = figure.subfigures(len(panels), 1, height_ratios=heights, squeeze=False)
    for pane, (loss, curves), labels in zip(panes.flat, panels.items(), legends, strict=True):
        axes = pane.subplots()
        looks = [look_of(label) for label in curves]
        for number, (values, label) in enumerate(zip(curves.values(), labels, strict=True)):
            style = STYLES[looks[:number].count(looks[number]) % len(STYLES)]
            _curve(axes, values, "" if label in labels[:number] else label, looks[number], style)
        dress(axes, xlabel="epoch", ylabel=f"training loss, {loss}")
        axes.xaxis.get_major_locator().set_params(integer=True)
        _log_if_wide(axes, np.concatenate([values.ravel() for values in curves.values()]))
        pane.legend(loc="outside lower center", ncols=columns(labels), frameon=False, fontsize=SMALL, columnspacing=1.2)
    count = sum(map(len, panels.values()))
    text = f"Mean training loss per epoch of {count} configurations, in a panel for each of {', '.join(panels)}."
    return Picture(title or "Training loss per epoch", text, figure)


def _panels(records: Sequence[Record], names: Mapping[str, str]) -> dict[str, Curves]:
    """The curves of each kind of loss, in the order of names."""
    found: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        losses = record.loss_per_epoch
        if len(losses) >= 2:
            label = names.get(record.config_hash, record.strategy)
            found[record.config["loss"]["loss"]][label].append(losses)
    return {loss: {label: _stack(runs) for label, runs in sorted(found[loss].items())} for loss in sorted(found)}


def _legend(labels: list[str]) -> list[str]:
    """What the legend says of each: the label, or the strategy alone where there are too many."""
    return short_labels(labels) if len(labels) <= MOST else ["+".join(parts(label)) for label in labels]


def _log_if_wide(axes: Any, losses: np.ndarray) -> None:
    """A logarithmic axis with plain numbers for losses that one would press flat."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    known = losses[~np.isnan(losses)]
    if len(known) and known.min() > 0 and known.max() > 4 * known.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _stack(runs: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Float (seeds, epochs), NaN after the end of shorter runs and where the loss was not finite."""
    longest = max(map(len, runs))
    return np.array([[*run, *[None] * (longest - len(run))] for run in runs], dtype=float)


def _curve(axes: Any, values: np.ndarray, label: str, look: Look, style: str) -> None:
    values = values[:, ~np.isnan(values).all(axis=0)]
    epochs = np.arange(1, values.shape[1] + 1)
    if len(values) > 1:
        axes.fill_between(
            epochs, np.nanmin(values, axis=0), np.nanmax(values, axis=0), color=look.colour, alpha=0.15, lw=0
        )
    marks = {"marker": look.marker, "ms": 4, "mec": look.edge, "markevery": max(1, len(epochs) // 10)}
    axes.plot(epochs, np.nanmean(values, axis=0), color=look.colour, ls=style, lw=1.2, **marks, label=plain(label))
