"""What tuning gains on its own data set against what it costs on others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context

from retrieval_bench.columns import column, metric_names
from retrieval_bench.figures import style
from retrieval_bench.figures.style import Plot
from retrieval_bench.figures.tradeoff import draw_points, limit_values
from retrieval_bench.leaderboard import leaderboard, row_keys
from retrieval_bench.records import Record

AXES = ("elsewhere", "gain")


@rc_context(style.STYLE)
def home_and_elsewhere(records_by_row: Mapping[str, Sequence[Record]], title: str = "") -> Plot | None:
    """Recall@1 gained over frozen features on the own test classes against its mean change on other data sets (points,
    with 95 % intervals), a point per row.

    Args:
        records_by_row: a row per configuration, all of one protocol, frozen features among them.
        title: of the plot.

    Returns:
        None if fewer than two rows were measured elsewhere beside frozen features.
    """
    firsts = {row: records[0] for row, records in records_by_row.items() if records}
    table: Any = leaderboard([record for records in records_by_row.values() for record in records])
    if not {*AXES} <= set(table):
        return None
    by_key = dict(zip(row_keys(table), table.to_dict("records"), strict=True))
    rows: Any = pd.DataFrame([{**by_key[run.config_hash, run.kind], "strategy": row} for row, run in firsts.items()])
    rows = rows.dropna(subset=[*AXES]).sort_values("gain", ascending=False, kind="stable")
    if len(rows) < 2:
        return None
    away, home = (rows[name].to_numpy(dtype=np.float64) * 100 for name in AXES)
    away_half, home_half = (rows[f"{name}_ci95"].to_numpy(dtype=np.float64) * 100 for name in AXES)
    figure = style.new_figure(3.6)
    axes = figure.subplots()
    labels = list(rows["strategy"])
    series = style.series_of([firsts[row].strategy for row in labels])
    for number, (name, look) in enumerate(zip(series, map(style.look_of, series), strict=True)):
        draw_points(axes, np.array([[away[number], home[number], home_half[number]]]), look, label=name, ls="none")
        if away_half[number] > 0:
            bar = {"fmt": "none", "ecolor": look["color"], "elinewidth": 0.8, "capsize": 1.5, "alpha": 0.35}
            axes.errorbar(away[number], home[number], xerr=away_half[number], **bar, zorder=2)
    for line in (axes.axhline, axes.axvline):
        line(0, color="black", lw=0.8, alpha=0.4, zorder=1.5)
    axes.set(xlabel=column("elsewhere").axis, ylabel=column("gain").axis)
    room = 0.08 * max(np.ptp(away), 1.0)
    axes.set_xlim(min(0, away.min()) - room, max(0, away.max()) + room)
    limit_values(axes, home, home_half)
    axes.set_ylim(min(-2, axes.get_ylim()[0], home.min() - 2))
    style.legend_below(axes)
    summary = price_of_tuning(rows)
    return Plot(title or "What tuning gains at home and costs elsewhere", summary, figure, (summary,))


def price_of_tuning(rows: Any) -> str:
    """One sentence: which row of a leaderboard's protocol gains most over frozen features on its own test classes and
    what that costs on other data sets, and which of those that gain keeps most there; empty where nothing was measured
    elsewhere, or without frozen features."""
    measured = rows.dropna(subset=[*AXES]) if {*AXES} <= set(rows) else rows[:0]
    gaining = measured[measured["gain"] > 0] if len(measured) else measured
    if not len(gaining):
        return "No row gains over frozen features on its own test classes." if len(measured) > 1 else ""
    sets = [name.removeprefix("elsewhere_on_") for name in metric_names(rows) if name.startswith("elsewhere_on_")]
    first, kept = (gaining.loc[gaining[name].astype(float).idxmax()] for name in ("gain", "elsewhere"))
    at_home, away = ((column(name).text(first[name]), column(name).text(kept[name])) for name in AXES[::-1])
    text = (
        f"Over frozen features, {first['strategy']} gains most at home, {at_home[0]} points of R@1, and changes R@1 "
        f"elsewhere ({', '.join(sets)}) by {away[0]}"
    )
    if first["strategy"] == kept["strategy"]:
        return f"{text}; none that gains keeps more there."
    return (
        f"{text}; of those that gain, {kept['strategy']} keeps most there: {at_home[1]} at home, {away[1]} elsewhere."
    )
