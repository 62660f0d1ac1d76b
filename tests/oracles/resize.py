"""Antialiased resizing from its definition: one output, one input, one weight at a time."""

from __future__ import annotations


def triangle(x: float) -> float:
    """Bilinear: half-width 1."""
    return max(0.0, 1 - abs(x))


def keys(x: float) -> float:
    """Bicubic (Keys, 1981) with a = -0.5: half-width 2."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def resize_weights(length: int, target: int, bicubic: bool) -> list[list[float]]:
    """Row i holds the weight of each of `length` inputs in output i of `target`; each row sums to 1."""
    scale = length / target
    stretch = max(1.0, scale)
    rows = []
    for output in range(target):
        centre = (output + 0.5) * scale
        row = [(keys if bicubic else triangle)((place + 0.5 - centre) / stretch) for place in range(length)]
        rows.append([weight / sum(row) for weight in row])
    return rows
