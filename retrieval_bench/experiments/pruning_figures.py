"""Figures of pruning, from records: Recall@1 against size, and how alike structures are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from retrieval_bench.data.images import ImageTable
from retrieval_bench.experiments.figures import new_figure, save_figure
from retrieval_bench.experiments.study import Record

COSTS = {
    "macs": (1e6, "multiply-accumulates, millions"),
    "parameters": (1e6, "parameters, millions"),
    "latency_ms": (1, "milliseconds for one image"),
}
"""Per axis of the curve: what is divided by, and its label."""


def draw_curve(records: dict[str, list[Record]], path: Path, heading: str, images: ImageTable, others: Sequence[Record]) -> list[str]:
    """Writes a PNG with Recall@1 against multiply-accumulates, parameters and latency, a line per way to prune; points are means over
    seeds, bars reach to the lowest and highest seed."""
    del images, others
    families: dict[str, list[list[Record]]] = {}
    for name, found in records.items():
        families.setdefault(re.sub(r" -?[\d.]+$", "", name), []).append(found)
    figure = new_figure((15, 4.6))
    axes = figure.subplots(1, len(COSTS))
    for axis, (cost, (unit, label)) in zip(axes, COSTS.items(), strict=True):
        for name, rows in families.items():
            known = [found for found in rows if all(cost in record["cost"] for record in found)]  # older records have no latency
            if not known:
                continue
            points = sorted((_mean(found, cost) / unit, *_recalls(found)) for found in known)
            sizes, means, lows, highs = np.array(points).T
            axis.errorbar(sizes, means, (means - lows, highs - means), marker="o", ms=4, lw=1.2, capsize=2, label=name)
        axis.set(xlabel=label, ylabel="R@1, %")
        axis.grid(color="0.92")
        axis.legend(frameon=False, fontsize=8)
    save_figure(figure, path, heading)
    return []


def _mean(found: list[Record], cost: str) -> float:
    return float(np.mean([record["cost"][cost] for record in found]))


def _recalls(found: list[Record]) -> tuple[float, float, float]:
    """Mean, lowest and highest Recall@1 in percent."""
    values = [100 * record["metrics"]["recall_at_1"] for record in found]
    return float(np.mean(values)), min(values), max(values)


def structure(record: Record) -> np.ndarray:
    """Float (layers,): share of the channels that stay, layer by layer (section 7 of Wang et al.'s experiment)."""
    facts = next(part for part in record["facts"].values() if "widths" in part)
    return np.array([width / facts["full_widths"][name] for name, width in facts["widths"].items()])


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's correlation; NaN where one of them is the same share in every layer."""
    return float(np.corrcoef(one, other)[0, 1]) if one.std() > 1e-12 and other.std() > 1e-12 else float("nan")


def draw_similarity(records: dict[str, list[Record]], path: Path, heading: str, images: ImageTable, others: Sequence[Record]) -> list[str]:
    """Writes a PNG with the correlation of every pair of structures, and returns the mean correlation between the seeds of each row."""
    del images, others
    names = [f"{name}, {record['seed']}" for name, found in records.items() for record in found]
    shares = [structure(record) for found in records.values() for record in found]
    matrix = np.array([[correlation(one, other) for other in shares] for one in shares])
    figure = new_figure((2 + 0.42 * len(names), 1.5 + 0.36 * len(names)))
    axis = figure.subplots()
    shown = axis.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    axis.set_yticks(range(len(names)), names, fontsize=6)
    for place in np.cumsum([len(found) for found in records.values()])[:-1]:
        axis.axhline(place - 0.5, color="black", lw=0.6)
        axis.axvline(place - 0.5, color="black", lw=0.6)
    axis.set_title("correlation of structures; rows are settings and seeds", fontsize=9)
    figure.colorbar(shown, ax=axis, shrink=0.7)
    save_figure(figure, path, heading)
    return ["Correlation of structures between seeds, mean over pairs (lowest, highest):\n", *_between_seeds(records)]


def _between_seeds(records: dict[str, list[Record]]) -> list[str]:
    lines = []
    for name, found in records.items():
        pairs = [correlation(structure(one), structure(other)) for one, other in combinations(found, 2)]
        pairs = [value for value in pairs if value == value]
        if pairs:
            lines.append(f"- {name}: {np.mean(pairs):.3f} ({min(pairs):.3f}, {max(pairs):.3f}), {len(pairs)} pairs")
    return [*lines, ""]
