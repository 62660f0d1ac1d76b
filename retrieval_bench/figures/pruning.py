"""Pruned networks: Recall@1 against their size, and how alike their structures are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.colors import Normalize

from retrieval_bench.columns import column
from retrieval_bench.figures import style
from retrieval_bench.figures.style import Plot, plain
from retrieval_bench.figures.tradeoff import RECALL, has_cost, limit_values
from retrieval_bench.leaderboard import leaderboard, row_keys
from retrieval_bench.records import Record

SIZES = ("macs", "parameters", "latency_ms")
AMOUNTS = ("budget=", "drop=")
"""The options that say how much is pruned."""
STRUCTURE = ("widths", "dropped_blocks")
"""What pruning puts into the record: channels that are left, blocks that are gone."""


@rc_context(style.STYLE)
def pruning_curve(records_by_row: Mapping[str, Sequence[Record]], title: str = "") -> Plot | None:
    """Recall@1 against multiply-accumulates, parameters and latency, a panel for each in which networks differ: a line
    per way to prune through means with 95 % intervals, and networks that keep their size as faint points.

    Args:
        records_by_row: a row per configuration, all of one protocol. What a row's name has besides the amount
            (``Gates 0.5``, ``channel_gates(budget=0.5)``) says which line it belongs to.
        title: of the plot.

    Returns:
        None if fewer than two pruned networks differ in size.
    """
    records_by_row = {row: records for row, records in records_by_row.items() if records}
    table = leaderboard([record for records in records_by_row.values() for record in records])
    by_key = dict(zip(row_keys(table), table.to_dict("records"), strict=True)) if len(table) else {}
    firsts = {row: records[0] for row, records in records_by_row.items()}
    rows = pd.DataFrame([by_key[record.config_hash, record.kind] for record in firsts.values()])
    rows["family"] = [family(row) if is_pruned(record) else "" for row, record in firsts.items()]
    sizes = [size for size in SIZES if has_cost(rows, size) and rows.loc[rows["family"] != "", size].count() > 1]
    if not sizes:
        return None
    rows: Any = rows[rows["recall_at_1"].notna()]
    lines_of = rows["family"].to_numpy()
    families = sorted(set(lines_of) - {""})
    figure = style.new_figure(2.9 * len(sizes), legend=["not pruned", *families])
    values, halves = rows[["recall_at_1", "recall_at_1_ci95"]].to_numpy(dtype=np.float64).T / RECALL.scale
    looks = [style.look_of(rows["strategy"][lines_of == name].iloc[0]) for name in families]
    drawn: Any = []
    for axes, size in zip(figure.subplots(len(sizes), 1, squeeze=False).flat, sizes, strict=True):
        costs = rows[size].to_numpy(dtype=np.float64) / column(size).scale
        points, whole = np.column_stack((costs, values, np.nan_to_num(halves))), lines_of == ""
        drawn = axes.plot(
            *points[whole, :2].T, ls="none", marker="o", ms=4.5, mfc="none", mec="black", alpha=0.45, label="not pruned"
        )
        for number, name in enumerate(families):
            own = points[(lines_of == name) & ~np.isnan(costs)]
            own, line_style = own[own[:, 0].argsort()], style.line_style(looks, number)
            drawn += axes.plot(*own[:, :2].T, **looks[number], ls=line_style, ms=5.5, lw=1.2, label=plain(name))
            axes.errorbar(*own.T, fmt="none", ecolor=looks[number]["color"], elinewidth=0.8, capsize=2)
        axes.set(xlabel=column(size).axis, ylabel=RECALL.axis)
        limit_values(axes, values, halves)
    style.legend_below(figure, ["not pruned", *families], handles=drawn)
    summary = (
        f"Recall@1 against {', '.join(column(size).axis for size in sizes)}, a line for each of {', '.join(families)}, "
        f"beside {(lines_of == '').sum()} configurations that are not pruned."
    )
    return Plot(title or "Recall@1 of pruned networks", summary, figure)


def is_pruned(record: Record) -> bool:
    """Whether a strategy of the run made the network smaller."""
    return any(key in part for part in record.info.values() if isinstance(part, dict) for key in STRUCTURE)


def family(row: str) -> str:
    """The row's name without how much is pruned: what makes one line."""
    match = re.fullmatch(r"([\w ]+?) -?[\d.]+", row)
    return match[1] if match else style.drop_options(row, lambda option: option.startswith(AMOUNTS))


def structure(record: Record) -> np.ndarray:
    """Float (layers,): share of the channels that stay, layer by layer (section 7 of Wang et al.'s experiment)."""
    part = next(part for part in record.info.values() if "widths" in part)
    return np.array([width / part["full_widths"][name] for name, width in part["widths"].items()])


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's correlation; NaN where one of them is the same share in every layer."""
    return float(np.corrcoef(one, other)[0, 1]) if min(one.std(), other.std()) > 1e-12 else float("nan")


@rc_context(style.STYLE)
def structure_similarity(records_by_row: Mapping[str, Sequence[Record]], title: str = "") -> Plot | None:
    """The correlation of every pair of structures, rows being settings and seeds; the notes have the mean correlation
    between the seeds of each setting. None without a structure."""
    shares = {
        row: {
            record.seed: structure(record)
            for record in records
            if any("widths" in part for part in record.info.values())
        }
        for row, records in records_by_row.items()
    }
    everything = [share for seeds in shares.values() for share in seeds.values()]
    if not everything:
        return None
    names = [f"{row}, {seed}" for row, seeds in shares.items() for seed in seeds]
    matrix = np.array([[correlation(one, other) for other in everything] for one in everything])
    side = 0.18 * len(names)
    figure = style.new_figure(0.7 + side, 1.3 + side + 0.065 * max(map(len, names)))
    axes = figure.subplots()
    style.heat_map(axes, matrix, names, "correlation of structures", Normalize(-1, 1))
    axes.set(xticks=[], xlabel="the same networks")
    for end in np.cumsum([len(seeds) for seeds in shares.values()])[:-1]:
        axes.axhline(end - 0.5, color="black", lw=0.6)
        axes.axvline(end + 0.5, color="black", lw=0.6)
    notes = []
    for row, seeds in shares.items():
        pairs = [correlation(one, other) for one, other in combinations(seeds.values(), 2)]
        pairs = [value for value in pairs if value == value]
        if pairs:
            notes.append(f"- {row}: {np.mean(pairs):.3f} ({min(pairs):.3f}, {max(pairs):.3f}), {len(pairs)} pairs")
    summary = (
        f"Correlation of the structures of {len(names)} networks; a block on the diagonal has the seeds of a setting."
    )
    heading = "Correlation of structures between seeds, mean over pairs (lowest, highest):\n"
    return Plot(title or "Correlation of structures", summary, figure, (heading, *notes))
