"""How alike pruned structures are, from records."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retrieval_bench.data.table import ImageTable
from retrieval_bench.figures.canvas import new_figure, save_figure

if TYPE_CHECKING:
    from retrieval_bench.experiments.study import Record


def structure(record: Record) -> np.ndarray:
    """Float (layers,): share of the channels that stay, layer by layer (section 7 of Wang et al.'s experiment)."""
    facts = next(part for part in record["facts"].values() if "widths" in part)
    return np.array([width / facts["full_widths"][name] for name, width in facts["widths"].items()])


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's correlation; NaN where one of them is the same share in every layer."""
    return float(np.corrcoef(one, other)[0, 1]) if one.std() > 1e-12 and other.std() > 1e-12 else float("nan")


def draw_similarity(
    records: dict[str, list[Record]], path: Path, heading: str, images: ImageTable, others: Sequence[Record]
) -> list[str]:
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
