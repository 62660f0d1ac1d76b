"""What all figures share: a canvas without a window, and a PNG that is whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from retrieval_bench.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(size: tuple[float, float]) -> Figure:
    """An empty figure of `size` inches, width and height."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path, heading: str) -> None:
    """Writes the figure as PNG under its heading, atomically."""
    figure.suptitle(heading, fontsize=8, wrap=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
