"""Which blocks a learned router tunes: for which classes, over the epochs, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context

from retrieval_bench.figures import style
from retrieval_bench.figures.style import Plot, info_with
from retrieval_bench.records import Record

MOST = 20
"""Classes that are shown."""


@rc_context(style.STYLE)
def routes(records_by_row: Mapping[str, Sequence[Record]], title: str = "") -> Plot | None:
    """The share of tuned blocks by class, by epoch and at test, and the entropy of the router's decisions: a column for
    the first run of each row that has learned routes (:func:`policy_of`), each run once; None if no row has."""
    shown: dict[str, tuple[str, Record, dict[str, Any]]] = {}
    for row, records in records_by_row.items():
        if records and (policy := policy_of(records[0])):
            shown.setdefault(records[0].id, (row, records[0], policy))
    if not shown:
        return None
    classes = max(len(record.info["routes"]["rate_by_class"]) for _, record, _ in shown.values())
    epochs = max(len(policy["argmax_rate_per_epoch"]) for *_, policy in shown.values())
    heights = (0.94 + 0.14 * min(MOST, classes), 0.94 + 0.14 * epochs, 1.7)
    figure, columns = style.figure_of_columns(len(shown), heights)
    summaries = []
    for (row, record, policy), (by_class, by_epoch, entropy) in zip(shown.values(), columns, strict=True):
        tested, heading = record.info["routes"], f"{row}\n" if len(shown) > 1 else ""
        chosen = dict(list(tested["rate_by_class"].items())[:MOST])
        rows = ["all test images", *(name[:28] for name in chosen)]
        title_by_class = f"{heading}share of test images for which a block is tuned, by class"
        style.heat_map(by_class, _rates([tested["rate"], *chosen.values()]), rows, title_by_class)
        rates = _rates([*policy["argmax_rate_per_epoch"], tested["rate"]])
        rows = [*(f"epoch {epoch}" for epoch in range(1, len(rates))), "test"]
        style.heat_map(by_epoch, rates, rows, "the same over the training (policy in training mode) and at test")
        _entropy(entropy, np.array(policy["entropy_per_epoch"]))
        mean = np.nanmean(_rates([tested["rate"]]))
        summaries.append(
            f"{tested['distinct']:,} distinct routes of {tested['images']:,} test images, "
            f"{tested['entropy_bits']:.2f} bits; on average {mean:.0%} of the blocks are tuned at test."
        )
    return Plot(title or "Learned routes", " ".join(summaries), figure)


def policy_of(record: Record) -> dict[str, Any]:
    """What the router learned, if the routes of the test images are known too; empty otherwise."""
    return info_with(record, "argmax_rate_per_epoch") if "routes" in record.info else {}


def _rates(rows: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Float (rows, blocks), NaN where a row has fewer blocks."""
    width = max(map(len, rows))
    return np.array([[*row, *[np.nan] * (width - len(row))] for row in rows], dtype=float)


def _entropy(axes: Any, entropy: np.ndarray) -> None:
    """Mean entropy of a decision per epoch, and of the blocks with the lowest and the highest one, from (epochs, K)."""
    epochs = np.arange(1, len(entropy) + 1)
    axes.fill_between(epochs, entropy.min(1), entropy.max(1), color=style.FAINT, lw=0, label="lowest and highest block")
    axes.plot(epochs, entropy.mean(1), "o-", label="mean over blocks")
    style.epoch_axis(axes, ylabel="entropy, bits", ylim=(0, 1.05))
    style.legend_below(axes)
