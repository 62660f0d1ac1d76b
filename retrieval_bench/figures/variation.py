"""The figure of weight variations: per block and epoch, with rates, passes and sorting quality, from the facts in records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrieval_bench.data.table import ImageTable
from retrieval_bench.figures.canvas import FAINT, WIDTH, Picture, dress, heat_map, legend_above, new_figure, save_figure

if TYPE_CHECKING:
    from retrieval_bench.experiments.study import Record

STRATEGIES = ("weight_variation", "autolr")
"""Strategies whose facts hold variations and rates."""

UNITS = {"n": "v, per weight", "sqrt_n": "v, root mean square", "relative": "v, relative to the weights"}
"""What a variation is, by its normaliser."""

RATE = "rate before the schedule"
"""Facts hold rates without the schedule's factor, which is the same for all blocks."""


def histories(records: dict[str, list[Record]]) -> dict[str, dict[str, Any]]:
    """The facts on variations of each row's first record, by the row and its seed; rows without are left out."""
    firsts = {f"{name}, seed {found[0]['seed']}": found[0]["facts"] for name, found in records.items() if found}
    found = {name: next((facts[key] for key in STRATEGIES if key in facts), None) for name, facts in firsts.items()}
    return {name: facts for name, facts in found.items() if facts and has_history(facts)}


def has_history(facts: dict[str, Any]) -> bool:
    """Whether the facts of a strategy in :data:`STRATEGIES` hold the variation of any block."""
    return bool(facts.get("variation")) and facts.get("blocks") != []


def draw(
    records: dict[str, list[Record]], path: Path, heading: str, images: ImageTable, others: Sequence[Record]
) -> list[str]:
    """Writes a PNG, a row per record: variation, learning rate, and sorting quality with passes per epoch. Without histories, nothing."""
    del images, others
    shown = histories(records)
    if not shown:
        return []
    figure = new_figure((13, 3.4 * len(shown) + 0.6))
    axes = figure.subplots(len(shown), 3, squeeze=False)
    for (name, facts), (left, middle, right) in zip(shown.items(), axes, strict=True):
        _by_block(left, np.array(facts["variation"], dtype=float), f"{name}: weight variation", _unit(facts))
        _by_block(middle, _rates(facts), "learning rate", RATE)
        _by_epoch(right, facts)
    save_figure(figure, path, heading)
    return []


def variation_heat_map(facts: dict[str, Any], title: str = "") -> Picture:
    """Weight variation and learning rate per block and epoch, and sorting quality with passes per epoch.

    Args:
        facts: what a strategy in :data:`STRATEGIES` put into the record: ``variation`` (epochs, K), ``rates`` by block, ``blocks``,
            ``quality``, ``passes`` or ``trials``, and ``normalizer`` where that is not ``n``.
        title: of the picture.
    """
    values, rates = np.array(facts["variation"], dtype=float), _rates(facts)
    heights = [0.75 + 0.13 * max(4, min(len(part), 25)) for part in (values, rates)]
    figure = new_figure((WIDTH, sum(heights) + 1.8))
    above, middle, below = figure.subplots(3, 1, height_ratios=[*heights, 1.8])
    for axes, part, words in (
        (above, values, ("weight variation", _unit(facts))),
        (middle, rates, ("learning rate", RATE)),
    ):
        step = -(-len(part) // 25)
        heat_map(
            axes,
            part,
            [str(epoch) if epoch % step == 0 or step == 1 else "" for epoch in range(1, len(part) + 1)],
            words[1],
            log=True,
        )
        axes.set(title=words[0], xlabel="block", ylabel="epoch")
    _by_epoch(below, facts)
    for axes in figure.axes:
        dress(axes)
        axes.grid(visible=axes is below)
    legend_above(below)
    quality = facts["quality"][-1]
    words = f", sorting quality {quality:.2f} in the last one" if quality is not None else ""
    return Picture(
        title or "Weight variation",
        f"Weight variation and rates of {values.shape[1]} blocks over {len(values)} epochs{words}.",
        figure,
    )


def _unit(facts: dict[str, Any]) -> str:
    return UNITS[facts.get("normalizer", "n")]


def _rates(facts: dict[str, Any]) -> np.ndarray:
    """Float (epochs, K): the learning rate of each block."""
    return np.array([facts["rates"][block] for block in facts["blocks"]], dtype=float).T


def _by_block(axes: Any, values: np.ndarray, title: str, unit: str) -> None:
    """A line per epoch (epochs, K) over the blocks, first epochs light."""
    from matplotlib import colormaps

    colours = colormaps["viridis"](np.linspace(0.85, 0, len(values)))
    chosen = np.unique(np.linspace(0, len(values) - 1, min(len(values), 10)).round().astype(int))
    for epoch in chosen:
        axes.plot(
            np.arange(1, values.shape[1] + 1),
            values[epoch],
            "o-",
            ms=3,
            lw=1.2,
            color=colours[epoch],
            label=f"epoch {epoch + 1}",
        )
    if (values > 0).any():
        axes.set_yscale("log")
    axes.set(xlabel="block", ylabel=unit, title=title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize=7, ncols=2)


def _by_epoch(axes: Any, facts: dict[str, Any]) -> None:
    """Sorting quality and threshold, and the number of passes as bars."""
    epochs = np.arange(1, len(facts["quality"]) + 1)
    bars = axes.twinx()
    passes = facts.get("passes", facts["trials"])
    bars.bar(epochs, passes, width=0.5, color=FAINT, zorder=0)
    bars.set(ylabel="passes (bars)", ylim=(0, max(passes) + 1))
    bars.yaxis.get_major_locator().set_params(integer=True)
    axes.set_zorder(bars.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.plot(epochs, facts["quality"], "o-", ms=4, label="sorting quality of the kept pass")
    if "threshold" in facts:
        axes.plot(epochs, facts["threshold"], "--", color="C3", lw=1, label="threshold")
    axes.set(xlabel="epoch", ylabel="sorting quality", ylim=(-0.03, 1.08), title="sorting quality and passes")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize=7, loc="center right")
