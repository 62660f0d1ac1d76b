"""Weight variations and learning rates per block and epoch, with passes and sorting quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context

from retrieval_bench.figures import style
from retrieval_bench.figures.style import Plot, info_with
from retrieval_bench.records import Record

UNITS = {"n": "v, per weight", "sqrt_n": "v, root mean square", "relative": "v, relative to the weights"}
"""What a variation is, by its normaliser."""
MOST = 25
"""Epochs that are named beside a heat map."""


def history_of(record: Record) -> dict[str, Any]:
    """What a strategy of the run says about weight variations: ``variation`` (epochs, K), ``rates`` by block,
    ``blocks``, ``quality``, ``passes`` or ``trials``, and ``normalizer`` where that is not ``n``; empty without a
    trained block."""
    history = info_with(record, "variation")
    return history if history.get("blocks") != [] else {}


@rc_context(style.STYLE)
def weight_variation(records_by_row: Mapping[str, Sequence[Record]], title: str = "") -> Plot | None:
    """Weight variation and learning rate per block and epoch, and sorting quality with passes per epoch, a column for
    the first run of each row that has them (:func:`history_of`); None if no row has."""
    firsts = {f"{row}, seed {records[0].seed}": records[0] for row, records in records_by_row.items() if records}
    histories = {name: history for name, record in firsts.items() if (history := history_of(record))}
    if not histories:
        return None
    shapes = [np.shape(history["variation"]) for history in histories.values()]
    epochs = max(shape[0] for shape in shapes)
    figure, columns = style.figure_of_columns(len(histories), [0.75 + 0.13 * max(4, min(epochs, MOST))] * 2 + [1.6])
    for (name, history), (above, middle, below) in zip(histories.items(), columns, strict=True):
        heading = f"{name}\n" if len(histories) > 1 else ""
        variation = np.array(history["variation"], dtype=float)
        _by_block(above, variation, f"{heading}weight variation {UNITS[history.get('normalizer', 'n')]}")
        rates = np.array([history["rates"][block] for block in history["blocks"]], dtype=float).T
        _by_block(middle, rates, "learning rate before the schedule")  # whose factor is the same for all blocks
        _by_epoch(below, history)
    qualities = [history["quality"][-1] for history in histories.values()]
    known = ", ".join(f"{quality:.2f}" for quality in qualities if quality is not None)
    summary = (
        f"Weight variation and rates of {' and '.join(str(shape[1]) for shape in shapes)} blocks over {epochs} epochs"
        f"{f', sorting quality {known} in the last one' if known else ''}."
    )
    return Plot(title or "Weight variation", summary, figure)


def _by_block(axes: Any, values: np.ndarray, title: str) -> None:
    """A heat map of (epochs, K)."""
    step = -(-len(values) // MOST)
    names = [str(epoch) if epoch % step == 0 else "" for epoch in range(1, len(values) + 1)]
    style.heat_map(axes, values, names, title, "log")
    axes.set_ylabel("epoch")


def _by_epoch(axes: Any, history: Mapping[str, Any]) -> None:
    """Sorting quality and threshold as lines, the number of passes as bars."""
    epochs, passes = np.arange(1, len(history["quality"]) + 1), history.get("passes", history["trials"])
    bars = axes.twinx()
    bars.bar(epochs, passes, width=0.5, color=style.FAINT, zorder=0)
    bars.set(ylim=(0, max(passes) + 1), ylabel="passes (bars)")
    bars.yaxis.get_major_locator().set_params(integer=True)
    bars.grid(visible=False)
    axes.set_zorder(bars.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.plot(epochs, history["quality"], "o-", label="sorting quality of the kept pass")
    if "threshold" in history:
        axes.plot(epochs, history["threshold"], "--", color="C3", lw=1, label="threshold")
    style.epoch_axis(axes, ylabel="sorting quality", ylim=(-0.03, 1.08))
    style.legend_below(axes)
