"""Recall@1 against size for networks that are pruned, and those that are not: from records of a study, or from the table of a protocol."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrieval_bench.data.table import ImageTable
from retrieval_bench.figures.canvas import FAINT, SMALL, WIDTH, Picture, dress, new_figure, plain, save_figure
from retrieval_bench.figures.colours import look_of, parts
from retrieval_bench.figures.labels import without
from retrieval_bench.figures.tradeoff import COSTS, PERCENT, columns, limits

if TYPE_CHECKING:
    from retrieval_bench.experiments.study import Record

SIZES = ("macs", "parameters", "latency_ms")
PRUNING = ("channel_gates", "channel_pruning", "layer_pruning", "network_slimming")
"""Strategies that change the size of the network."""
AMOUNTS = ("budget=", "drop=")
"""The options that say how much is pruned."""


def draw_curve(
    records: dict[str, list[Record]], path: Path, heading: str, images: ImageTable, others: Sequence[Record]
) -> list[str]:
    """Writes a PNG with Recall@1 against multiply-accumulates, parameters and latency, a line per way to prune; points are means over
    seeds, bars reach to the lowest and highest seed."""
    del images, others
    families: dict[str, list[list[Record]]] = {}
    measured = {
        name: found for name, found in records.items() if all("recall_at_1" in record["metrics"] for record in found)
    }
    if not measured:  # --k left it out
        return []
    for name, found in measured.items():
        families.setdefault(re.sub(r" -?[\d.]+$", "", name), []).append(found)
    figure = new_figure((15, 4.6))
    for axes, cost in zip(figure.subplots(1, len(SIZES)), SIZES, strict=True):
        for name, rows in families.items():
            known = [
                found for found in rows if all(cost in record["cost"] for record in found)
            ]  # older records have no latency
            if known:
                _line(
                    axes, np.array([(_mean(found, cost) / COSTS[cost][0], *_recalls(found)) for found in known]), name
                )
        axes.set(xlabel=COSTS[cost][1], ylabel="R@1, %")
        axes.grid(color=FAINT)
        axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path, heading)
    return []


def _line(axes: Any, points: np.ndarray, name: str, **look: Any) -> None:
    """A line through `points` (N, 4): size, mean, lowest and highest value."""
    sizes, means, lows, highs = np.array(sorted(points.tolist())).T
    (line,) = axes.plot(sizes, means, **{"marker": "o", "ms": 4, "lw": 1.2} | look, label=name)
    axes.errorbar(
        sizes, means, (means - lows, highs - means), fmt="none", ecolor=line.get_color(), elinewidth=0.8, capsize=2
    )


def _mean(found: list[Record], cost: str) -> float:
    return float(np.mean([record["cost"][cost] for record in found]))


def _recalls(found: list[Record]) -> tuple[float, float, float]:
    """Mean, lowest and highest Recall@1 in percent."""
    values = [PERCENT * record["metrics"]["recall_at_1"] for record in found]
    return float(np.mean(values)), min(values), max(values)


def is_pruned(label: str) -> bool:
    """Whether a strategy in the label makes the network smaller."""
    return any(name in PRUNING for name in parts(label))


def family(label: str) -> str:
    """The label without the options that say how much is pruned: what makes one line."""
    return without(label, lambda option: option.startswith(AMOUNTS))


def pruning_curve(table: Any, cost: str = "macs", title: str = "") -> Picture:
    """Recall@1 against size: a line per way to prune, with 95 % intervals, and the networks that keep their size as faint points.

    Args:
        table: as for :func:`retrieval_bench.figures.tradeoff.tradeoff`.
        cost: ``macs``, ``parameters`` or ``latency_ms``.
        title: of the picture.
    """
    unit, axis = COSTS[cost]
    shown = table[table[cost].notna() & table["recall_at_1"].notna()]
    labels = list(map(str, shown["strategy"]))
    sizes = shown[cost].to_numpy(dtype=np.float64) / unit
    values, halves = (PERCENT * shown[name].to_numpy(dtype=np.float64) for name in ("recall_at_1", "recall_at_1_ci95"))
    known = np.nan_to_num(halves)
    points = np.column_stack((sizes, values, values - known, values + known))
    families = sorted({family(label) for label in labels if is_pruned(label)})
    figure = new_figure((WIDTH, 3.4 + 0.16 * -(-(len(families) + 1) // columns(families))))
    axes = figure.subplots()
    whole = [row for row, label in enumerate(labels) if not is_pruned(label)]
    axes.plot(
        sizes[whole],
        values[whole],
        ls="none",
        marker="o",
        ms=4.5,
        mfc="none",
        mec="black",
        alpha=0.45,
        label="not pruned",
        zorder=1.5,
    )
    for number, name in enumerate(families):
        rows = [row for row, label in enumerate(labels) if family(label) == name]
        look, alike = look_of(name), [other for other in families[:number] if parts(other) == parts(name)]
        style = {
            "marker": look.marker,
            "color": look.colour,
            "mec": look.edge,
            "ms": 5.5,
            "ls": ("-", "--", ":", "-.")[len(alike) % 4],
        }
        _line(axes, points[rows], plain(name), **style)
    dress(axes, xlabel=axis, ylabel="Recall@1, %")
    limits(axes, values, halves)
    figure.legend(loc="outside lower center", ncols=columns(families), frameon=False, fontsize=SMALL)
    text = f"Recall@1 against {axis}, a line for each of {', '.join(families)}, beside {len(whole)} configurations that are not pruned."
    return Picture(title or f"Recall@1 of pruned networks against {axis}", text, figure)
