"""Strategies under several losses: does their order depend on the loss?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context

from retrieval_bench.evaluation.statistics import t_interval
from retrieval_bench.figures import style
from retrieval_bench.figures.style import Plot
from retrieval_bench.figures.tradeoff import fence
from retrieval_bench.records import Record

ROW = 0.36
"""Inches of a strategy."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@rc_context(style.STYLE)
def ranking_by_loss(records_by_row: Mapping[str, Sequence[Record]], title: str = "") -> Plot | None:
    """Recall@1 of each strategy less that of ``standard`` with the same loss, paired by seed, with its 95 % interval; a
    marker per loss, strategies by their mean difference; an arrow stands for a value far below the others. The notes
    have Spearman's correlation of the means over strategies for every pair of losses.

    Args:
        records_by_row: rows named ``Strategy, loss``, ``Standard`` among them; others, such as frozen features, which
            no loss has trained, are left out.
        title: of the plot.

    Returns:
        None for fewer than two losses with two strategies.
    """
    recalls = _recalls(records_by_row)
    if len(recalls) < 2:
        return None
    means = pd.DataFrame({loss: {name: seeds.mean() for name, seeds in own.items()} for loss, own in recalls.items()})
    order = list(means.sub(means.loc["Standard"]).mean(axis=1).sort_values(ascending=False).index)
    points = []
    for number, own in enumerate(recalls.values()):
        offset = (number - (len(recalls) - 1) / 2) * 0.8 / len(recalls)
        for name, seeds in own.items():
            paired = seeds.sub(own["Standard"]).dropna()
            points.append((order.index(name) + offset, number, *t_interval(paired.to_numpy())))
    places, losses, values, halves = np.nan_to_num(np.array(points).T)
    low = fence(values)
    left = min((values - halves)[values >= low].min(), low) - 1
    figure = style.new_figure(0.9 + ROW * len(order))
    axes: Any = figure.subplots()
    for number, loss in enumerate(recalls):
        look: dict[str, Any] = {"color": f"C{number}", "ls": "none", "ms": 4.5}
        marker = MARKERS[number % len(MARKERS)]
        inside, outside = (losses == number) & (values >= low), (losses == number) & (values < low)
        bars = {"xerr": halves[inside], "elinewidth": 1.2}
        axes.errorbar(values[inside], places[inside], marker=marker, label=loss, **bars, **look)
        axes.plot(np.full(outside.sum(), left), places[outside], marker="<", **look)
        for place, value in zip(places[outside], values[outside], strict=True):
            beside: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": style.SMALL}
            axes.annotate(f"{value:.1f}", (left, place), (6, 0), **beside)
    axes.axvline(0, color="black", lw=0.8, alpha=0.4, zorder=1)
    axes.set_yticks(range(len(order)), order)
    axes.set(ylim=(len(order) - 0.5, -0.5), xlabel="Recall@1 less that of standard, points")
    axes.grid(visible=False, axis="y")
    style.legend_below(axes)
    summary = f"Recall@1 of {', '.join(order)} less that of standard, under {', '.join(recalls)}."
    return Plot(title or "Strategies under several losses", summary, figure, _agreement(means))


def _recalls(records_by_row: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, pd.Series]]:
    """Recall@1 in percent over seeds, by loss and strategy; only losses with ``Standard`` and another strategy."""
    recalls: dict[str, dict[str, pd.Series]] = defaultdict(dict)
    for row, records in records_by_row.items():
        strategy, _, loss = row.rpartition(", ")
        if records and strategy and loss == records[0].config["loss"]["loss"]:
            values = {record.seed: 100 * record.metrics["recall_at_1"] for record in records}
            recalls[loss][strategy] = pd.Series(values)
    return {loss: own for loss, own in recalls.items() if "Standard" in own and len(own) > 1}


def _agreement(means: pd.DataFrame) -> tuple[str, ...]:
    """Spearman's correlation of the strategies' means under each pair of losses that share two or more."""
    ranks = means.dropna().rank()
    correlated = ranks.corr() if len(ranks) > 1 else pd.DataFrame()
    if correlated.empty:
        return ()
    heading = f"Spearman's correlation of the means of {len(ranks)} strategies under two losses:\n"
    return heading, *(f"- {one} and {other}: {correlated.loc[one, other]:.2f}" for one, other in combinations(means, 2))
