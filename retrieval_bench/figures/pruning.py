"""Pruned networks: Recall@1 against their size, and how alike their structures are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context

from retrieval_bench.columns import column
from retrieval_bench.figures import style
from retrieval_bench.figures.style import Plot, info_with
from retrieval_bench.figures.tradeoff import RECALL, draw_points, has_cost, limit_values
from retrieval_bench.leaderboard import leaderboard, row_keys
from retrieval_bench.records import Record

SIZES = ("macs", "parameters")
AMOUNTS = ("budget=", "drop=")
"""The options that say how much is pruned."""
STRUCTURE = ("widths", "dropped_blocks")
"""What pruning puts into the record: channels that are left, blocks that are gone."""


@rc_context(style.STYLE)
def pruning_curve(records_by_row: Mapping[str, Sequence[Record]], title: str = "") -> Plot | None:
    """Recall@1 against multiply-accumulates and parameters, a panel for each in which networks differ: a line
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
    families = sorted(rows.loc[lines_of != "", "family"].value_counts().index[: style.SERIES - 1])
    figure = style.new_figure(2.9 * len(sizes))
    values, halves = rows[["recall_at_1", "recall_at_1_ci95"]].to_numpy(dtype=np.float64).T / RECALL.scale
    looks = [style.look_of(rows["strategy"][lines_of == name].iloc[0]) for name in families]
    whole = {"color": "black", "marker": "o", "mfc": "none", "alpha": 0.45}
    panels: Any = figure.subplots(len(sizes), 1, squeeze=False)
    shown = shortened(families)
    for axes, size in zip(panels.flat, sizes, strict=True):
        costs = rows[size].to_numpy(dtype=np.float64) / column(size).scale
        points = np.column_stack((costs, values, halves))
        axes.plot(*points[lines_of == "", :2].T, **whole, ls="none", ms=4.5, label="not pruned")
        for number, name in enumerate(families):
            own = points[(lines_of == name) & ~np.isnan(costs)]
            line_style = style.line_style(looks, number)
            draw_points(
                axes, own[own[:, 0].argsort()], looks[number], label=shown[number], ms=5.5, lw=1.2, **line_style
            )
        axes.set(xlabel=column(size).axis, ylabel=RECALL.axis)
        limit_values(axes, values, halves)
    style.legend_below(panels[-1, 0])
    missing = len(set(lines_of) - {"", *families})
    summary = (
        f"Recall@1 against {', '.join(column(size).axis for size in sizes)}, a line for each of {', '.join(families)}, "
        f"beside {(lines_of == '').sum()} configurations that are not pruned."
        f"{f' {missing} ways with the fewest sizes are left out.' if missing else ''}"
    )
    return Plot(title or "Recall@1 of pruned networks", summary, figure)


def is_pruned(record: Record) -> bool:
    """Whether a strategy of the run made the network smaller."""
    return any(info_with(record, key) for key in STRUCTURE)


def family(row: str) -> str:
    """The row's name without how much is pruned: what makes one line."""
    if match := re.fullmatch(r"([\w ]+?) -?[\d.]+", row):
        return match[1]

    def without_amount(options: re.Match[str]) -> str:
        kept = ", ".join(option for option in options[1].split(", ") if not option.startswith(AMOUNTS))
        return f"({kept})" if kept else ""

    return re.sub(r"\(([^()]*)\)", without_amount, row)


def shortened(families: Sequence[str]) -> list[str]:
    """The families without the options that all of one strategy share."""
    parts = [re.split(r", |[()]", name) for name in families]
    shared = {
        first: set.intersection(*({*rest} for name, *rest in parts if name == first)) if several > 1 else set()
        for first, several in Counter(name for name, *_ in parts).items()
    }
    return [", ".join([name, *(part for part in rest if part and part not in shared[name])]) for name, *rest in parts]


def structure(record: Record) -> list[float]:
    """Share of the channels that stay, layer by layer (section 7 of Wang et al.'s experiment); empty if not pruned."""
    part = info_with(record, "widths")
    return [width / part["full_widths"][name] for name, width in part.get("widths", {}).items()]


def correlations(structures: np.ndarray) -> np.ndarray:
    """(N, N) Pearson's correlations of (N, layers); NaN for one with the same share in every layer."""
    centred = structures - structures.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = centred / np.where(length > 1e-9, length, np.nan)
    return unit @ unit.T


@rc_context(style.STYLE)
def structure_similarity(records_by_row: Mapping[str, Sequence[Record]], title: str = "") -> Plot | None:
    """The correlation of every pair of structures, rows being settings and seeds; the notes have the mean correlation
    between the seeds of each setting, and the spread of sizes over them. None without a structure."""
    shares = {
        row: {record.seed: share for record in records if (share := structure(record))}
        for row, records in records_by_row.items()
    }
    names = [f"{row}, {seed}" for row, seeds in shares.items() for seed in seeds]
    if not names:
        return None
    matrix = correlations(np.array([share for seeds in shares.values() for share in seeds.values()]))
    side = 0.18 * len(names)
    figure = style.new_figure(0.7 + side, 1.3 + side + 0.065 * max(map(len, names)))
    axes = figure.subplots()
    style.heat_map(axes, matrix, names, "correlation of structures", "signed")
    axes.set(xticks=[], xlabel="the same networks")
    notes, sizes, start = [], [], 0
    for row, seeds in shares.items():
        end = start + len(seeds)
        axes.axhline(end - 0.5, color="black", lw=0.6)
        axes.axvline(end + 0.5, color="black", lw=0.6)
        pairs = matrix[start:end, start:end][np.triu_indices(len(seeds), 1)]
        pairs, start = pairs[~np.isnan(pairs)], end
        if len(pairs):
            notes.append(f"- {row}: {pairs.mean():.3f} ({pairs.min():.3f}, {pairs.max():.3f}), {len(pairs)} pairs")
        if len(seeds) > 1:
            own = [record.cost for record in records_by_row[row] if record.seed in seeds]
            texts = [f"{_spread([cost[name] for cost in own])} {name}" for name in ("parameters", "macs")]
            sizes.append(f"- {row}: {', '.join(texts)}, {len(seeds)} seeds")
    summary = (
        f"Correlation of the structures of {len(names)} networks; a block on the diagonal has the seeds of a setting."
    )
    heading = "Correlation of structures between seeds, mean over pairs (lowest, highest):\n"
    if sizes:
        notes += ["\nSizes over seeds, in millions: mean ± standard deviation (smallest to largest):\n", *sizes]
    return Plot(title or "Correlation of structures", summary, figure, (heading, *notes))


def _spread(values: Sequence[float]) -> str:
    low, high = min(values) / 1e6, max(values) / 1e6
    return f"{np.mean(values) / 1e6:.3f} ± {np.std(values, ddof=1) / 1e6:.3f} ({low:.3f} to {high:.3f})"
