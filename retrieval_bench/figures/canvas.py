"""What all figures share: a canvas without a window, a PNG that is whole or not there, and an SVG that can stand inside a page.

Everything black is ink. In the SVG ink has the page's text colour, so that one picture serves a light and a dark page; what should be
fainter is ink with opacity.
"""

from __future__ import annotations

import html
import io
import re
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrieval_bench.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 5.4
"""Inches of a figure for a page: 389 points, so that letters keep their size on a phone."""
SMALL, TEXT = 7.5, 8.5
"""Points of ticks and legends, and of everything else."""
FAINT = (0.0, 0.0, 0.0, 0.18)
"""Grid lines, and whatever stands behind data."""


@dataclass(frozen=True)
class Picture:
    """A figure with its words.

    Attributes:
        title: what it shows; not drawn in the figure itself.
        text: one sentence in its place, for who does not see it.
        figure: the matplotlib figure.
    """

    title: str
    text: str
    figure: Figure

    @property
    def summary(self) -> str:
        return self.text

    def svg(self) -> str:
        return svg_text(self)


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


def save_picture(picture: Picture, path: Path) -> None:
    """Writes the picture as PNG on white, its title above, atomically. The figure grows by the title and shrinks again."""
    figure, lines = picture.figure, textwrap.wrap(plain(picture.title), width=85)
    width, height = figure.get_size_inches()
    heading = figure.suptitle("\n".join(lines), fontsize=TEXT)
    figure.set_size_inches(width, height + 0.05 + 0.15 * len(lines))
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing"
        )  # letters of other scripts become boxes; the SVG has them as text
        figure.savefig(temporary, dpi=200, format="png", facecolor="white")
    heading.set_text("")
    figure.set_size_inches(width, height)


def plain(text: object) -> str:
    """`text` as matplotlib draws it letter by letter: no formulas between dollar signs, no control characters."""
    return printable(text).replace("$", r"\$")


def printable(text: object) -> str:
    """`text` without control characters, which XML cannot hold; lines stay."""
    return "".join(letter for letter in str(text) if letter.isprintable() or letter == "\n")


def dress(axes: Any, **names: str) -> None:
    """Letters of one size, a faint grid below the data, no frame above and right; `names` as for ``Axes.set``."""
    axes.set(**names)
    for item in (axes.xaxis.label, axes.yaxis.label, axes.title):
        item.set_fontsize(TEXT)
    axes.tick_params(labelsize=SMALL)
    axes.grid(color=FAINT, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def heat_map(axes: Any, values: np.ndarray, rows: Sequence[str], unit: str = "", log: bool = False) -> None:
    """Cells of `values` (rows, columns), the first row on top, columns counted from 1; without `log` from 0 to 1. NaN, and 0 where `log`,
    stay empty. A colour bar if there is a `unit`. Cells are shapes, not an image, so that an SVG stays sharp."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, Normalize

    above = values[values > 0]
    low, high = (float(above.min()), float(above.max())) if len(above) else (0.1, 1.0)
    norm = LogNorm(low / 1.2, high * 1.2) if log else Normalize(0, 1)
    shown = np.ma.masked_invalid(np.where(values > 0, values, np.nan) if log else values)
    height, width = values.shape
    colours = colormaps["viridis"].resampled(64)
    cells = axes.pcolormesh(
        np.arange(width + 1) + 0.5, np.arange(height + 1) - 0.5, shown, norm=norm, cmap=colours, ec="face", lw=0.2
    )
    axes.invert_yaxis()
    axes.set_yticks(range(height), list(map(plain, rows)))
    axes.set_xticks(range(1, width + 1))
    if unit:
        _colour_bar(axes, cells, unit, low, high)


def _colour_bar(axes: Any, cells: Any, unit: str, low: float, high: float) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    bar = axes.figure.colorbar(cells, ax=axes)
    bar.set_label(unit, fontsize=TEXT)
    bar.ax.tick_params(labelsize=SMALL)
    if bar.ax.get_yscale() == "log":
        decades = 10.0 ** np.arange(np.ceil(np.log10(low)), np.floor(np.log10(high)) + 1)
        bar.set_ticks(list(decades) if len(decades) > 1 else sorted({low, high}))
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: re.sub(r"e([-+])0?", r"e\1", f"{value:.2g}")))


def legend_above(axes: Any) -> None:
    """The legend of the axes in a row above them, where it covers nothing."""
    axes.set_title("")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=SMALL)


def svg_text(picture: Picture) -> str:
    """The picture as an ``<svg>`` element for a page: as wide as its place, without background, ink in the page's text colour, letters as
    text. The same picture gives the same bytes, and ids that no other picture has."""
    from matplotlib import rc_context

    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    stream = io.StringIO()
    with rc_context({"svg.hashsalt": "retrieval_bench", "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        picture.figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    found = re.search(r'<svg [^>]*viewBox="([^"]+)"[^>]*>(.*)</svg>', stream.getvalue(), re.DOTALL)
    assert found is not None, "matplotlib writes an svg element with a viewBox"
    box, body = found.groups()
    body = re.sub(
        r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL
    )  # it would rule the whole page
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"((?:fill|stroke): ?)#000000", r"\1currentColor", body)
    body = re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", "sans-serif", body)
    words = "\n".join(
        f"<{tag}>{html.escape(printable(text))}</{tag}>"
        for tag, text in (("title", picture.title), ("desc", picture.text))
    )
    name = "f" + sha256((words + body).encode()).hexdigest()[:10]
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" width="100%" viewBox="{box}"'
    return f'{head} fill="currentColor" stroke-linejoin="round" stroke-linecap="butt">\n{words}{body}</svg>\n'
