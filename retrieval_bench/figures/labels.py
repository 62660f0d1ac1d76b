"""Words in figures: labels that are no longer than they must be, and places for them beside their points."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from retrieval_bench.figures.canvas import SMALL, plain

SHORT = 27
OPTIONS = re.compile(r"\(([^()]*)\)")
STEPS = (1.0, 0.5, 0.0, -0.5, -1.0)
SIDES = [(x, y) for x in STEPS for y in STEPS if max(abs(x), abs(y)) == 1]
"""Directions from a point to its label: right, up."""
DISTANCES = (7, 13, 20, 28, 38, 50)
"""Points from a point to its label, the nearest that is free is taken."""


def short_labels(labels: Sequence[str]) -> list[str]:
    """The labels, the long ones with only those options in which they differ from others of the same strategy."""
    alike = defaultdict(list)
    for label in dict.fromkeys(labels):
        alike[OPTIONS.sub("", label)].append(
            {option for found in OPTIONS.findall(label) for option in found.split(", ")}
        )
    common = {name: set.intersection(*found) for name, found in alike.items()}
    return [
        label if len(label) <= SHORT else without(label, common[OPTIONS.sub("", label)].__contains__)
        for label in labels
    ]


def without(label: str, dropped: Callable[[str], bool]) -> str:
    """The label without those of its options (``key=value``) for which `dropped` is true."""

    def kept(found: re.Match[str]) -> str:
        left = [option for option in found[1].split(", ") if not dropped(option)]
        return f"({', '.join(left)})" if left else ""

    return OPTIONS.sub(kept, label)


def place_labels(axes: Any, points: np.ndarray, labels: Sequence[str], others: np.ndarray, line: np.ndarray) -> None:
    """Writes a label beside each of `points` (N, 2) where it covers neither another label, nor one of `others` (M, 2), nor the `line`
    (L, 2), all in the units of the axes; a thin line leads to the far ones. It needs the final layout, so it comes last."""
    figure = axes.figure
    figure.draw_without_rendering()
    unit, frame = figure.dpi / 72, axes.get_window_extent()
    marks = axes.transData.transform(others)
    corners = axes.transData.transform(line)
    along = [start + (end - start) * part for start, end in pairwise(corners) for part in np.linspace(0, 1, 60)]
    boxes = [(x - unit, y - unit, x + unit, y + unit) for x, y in along]
    boxes += [(x - 5 * unit, y - 5 * unit, x + 5 * unit, y + 5 * unit) for x, y in marks]
    for point, label in zip(points, labels, strict=True):
        text = axes.annotate(
            _in_two_lines(plain(label)),
            point,
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=SMALL,
            va="center",
            in_layout=False,
        )
        size = text.get_window_extent()
        at = axes.transData.transform(point)
        choices = [_box(at, step * unit, side, size.width, size.height) for step in DISTANCES for side in SIDES]
        far = np.repeat(DISTANCES, len(SIDES)) * unit
        inside = (frame.x0, frame.y0, frame.x1, frame.y1)
        costs = far + [_outside(box, inside) + 5 * sum(_overlap(box, other) for other in boxes) for box in choices]
        chosen = int(costs.argmin())
        best = choices[chosen]
        boxes.append((best[0] - 3 * unit, best[1], best[2] + 3 * unit, best[3]))
        text.set_position(((best[0] - at[0]) / unit, ((best[1] + best[3]) / 2 - at[1]) / unit))
        if chosen >= len(SIDES):
            middle = np.clip(at, best[:2], best[2:])
            axes.annotate(
                "", point, xytext=tuple((middle - at) / unit), textcoords="offset points", in_layout=False,
                arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "black", "alpha": 0.5, "shrinkA": 0, "shrinkB": 3},
            )  # fmt: skip


Box = tuple[float, float, float, float]


def _in_two_lines(label: str) -> str:
    """A long label with its options below its name, which finds a place more easily."""
    return label.replace("(", "\n(", 1) if len(label) > SHORT else label


def _box(at: np.ndarray, distance: float, side: tuple[float, float], width: float, height: float) -> Box:
    """The box of a text on one side of a point: left, bottom, right, top."""
    left, bottom = at + distance * np.array(side) + np.array((width, height)) * (np.array(side) - 1) / 2
    return left, bottom, left + width, bottom + height


def _overlap(one: Box, other: Box) -> float:
    return max(0.0, min(one[2], other[2]) - max(one[0], other[0])) * max(
        0.0, min(one[3], other[3]) - max(one[1], other[1])
    )


def _outside(box: Box, frame: Box) -> float:
    """Area outside the frame, which counts more than what covers something."""
    return 10 * ((box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, frame))
