"""What all figures share: a plot with its words, the look of strategies and axes, heat maps, legends, labels.

Everything black is ink. In SVG ink has the page's text colour, so that one plot serves light and dark pages; what
should be fainter is ink with opacity.
"""

from __future__ import annotations

import html
import io
import re
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from retrieval_bench.files import atomic_path, write_text
from retrieval_bench.strategies import STRATEGIES
from retrieval_bench.strategies.base import Strategy

WIDTH = 5.4
"""Inches of a figure for a page: 389 points, so that letters keep their size on a phone."""
SMALL, TEXT = 7.5, 8.5
"""Points of ticks and legends, and of everything else."""
FAINT = (0.0, 0.0, 0.0, 0.18)
"""Grid lines, and whatever stands behind data."""
STYLE: dict[Any, Any] = {
    **dict.fromkeys(("axes.labelsize", "axes.titlesize", "figure.titlesize"), TEXT),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), SMALL),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **{"axes.grid": True, "grid.color": FAINT, "grid.linewidth": 0.6, "axes.axisbelow": True, "lines.markersize": 4},
    **{"legend.columnspacing": 1.2, "svg.hashsalt": "retrieval_bench", "svg.fonttype": "none"},
}
"""Letters of two sizes, a faint grid below the data, no frame above and right; SVG with text, the same each time."""
OPTIONS = re.compile(r"\(([^()]*)\)")
LONG_LABEL = 27
"""Letters; longer labels are shortened where they stand in a figure."""


@dataclass(frozen=True)
class Plot:
    """A figure with its words.

    Attributes:
        title: what it shows; not drawn in the figure itself.
        summary: one sentence for those who do not see it.
        figure: the matplotlib figure.
        notes: lines of Markdown that belong below it.
    """

    title: str
    summary: str
    figure: Figure
    notes: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Writes an SVG, or a PNG on white with the title above, by the path's ending; atomically."""
        if path.suffix == ".svg":
            write_text(path, self.svg())
            return
        width, height = self.figure.get_size_inches()
        lines = textwrap.wrap(plain(self.title), width=round(85 * width / WIDTH))
        heading = self.figure.suptitle("\n".join(lines), fontsize=TEXT)
        self.figure.set_size_inches(width, height + 0.05 + 0.15 * len(lines))
        with atomic_path(path) as temporary, warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Glyph .* missing"
            )  # other scripts become boxes; in the SVG they are text
            self.figure.savefig(temporary, dpi=200, format="png", facecolor="white")
        heading.set_text("")
        self.figure.set_size_inches(width, height)

    def svg(self) -> str:
        """The plot as an ``<svg>`` element for a page: as wide as its parent, without background, ink in the page's
        text colour, letters as text. The same plot gives the same bytes, and ids that no other plot has."""
        stream = io.StringIO()
        with rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")
            metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            self.figure.savefig(stream, format="svg", transparent=True, metadata=metadata)
        view_box, body = re.findall(r'<svg [^>]*viewBox="([^"]+)"[^>]*>(.*)</svg>', stream.getvalue(), re.DOTALL)[0]
        body = re.sub(
            r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL
        )  # the page has its own
        body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
        body = re.sub(r"((?:fill|stroke): ?)#000000", r"\1currentColor", body)
        body = re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", "sans-serif", body)
        title, summary = (html.escape(printable(text)) for text in (self.title, self.summary))
        words = f"<title>{title}</title>\n<desc>{summary}</desc>"
        prefix = "f" + sha256((words + body).encode()).hexdigest()[:10]
        body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", body)
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
            f'width="100%" viewBox="{view_box}" fill="currentColor" stroke-linejoin="round" stroke-linecap="butt">\n'
            f"{words}{body}</svg>\n"
        )


def printable(text: object) -> str:
    """`text` without control characters, which XML cannot hold; line breaks stay."""
    return "".join(letter for letter in str(text) if letter.isprintable() or letter == "\n")


def plain(text: object) -> str:
    """`text` as matplotlib draws it letter by letter: no formulas between dollar signs, no control characters."""
    return printable(text).replace("$", r"\$")


def strategy_names(label: str) -> list[str]:
    """The names in a strategy's label, without options and what follows a comma: ``layer_pruning(drop=last:2)+autolr``
    has two."""
    return OPTIONS.sub("", label).split(",")[0].strip().split("+")


def look_of(label: str) -> dict[str, Any]:
    """Arguments of ``Axes.plot`` for a strategy, a chain or a label of either; options change nothing. A chain has the
    colour of its first part, and the marker and the edge of its last."""
    names = strategy_names(label)
    first, last = (STRATEGIES.get(name, Strategy).look for name in (names[0], names[-1]))
    return {"color": first.colour, "marker": last.marker, "markeredgecolor": last.colour}


def line_style(looks: Sequence[Any], number: int) -> str:
    """The line style of a plot's line, another one than those of the lines of the same look before it."""
    return ("-", "--", ":", "-.")[looks[:number].count(looks[number]) % 4]


def drop_options(label: str, is_dropped: Callable[[str], bool]) -> str:
    """The label without those of its options (``key=value``) for which `is_dropped` is true."""

    def shorter(match: re.Match[str]) -> str:
        kept = ", ".join(option for option in match[1].split(", ") if not is_dropped(option))
        return f"({kept})" if kept else ""

    return OPTIONS.sub(shorter, label)


def short_labels(labels: Sequence[str]) -> list[str]:
    """The labels, the long ones with only those options in which they differ from others of the same strategy."""
    options = defaultdict(list)
    for label in dict.fromkeys(labels):
        options[OPTIONS.sub("", label)].append({part for match in OPTIONS.findall(label) for part in match.split(", ")})
    common = {name: set.intersection(*several) for name, several in options.items()}
    return [
        label if len(label) <= LONG_LABEL else drop_options(label, common[OPTIONS.sub("", label)].__contains__)
        for label in labels
    ]


def new_figure(height: float, width: float = WIDTH, legend: Sequence[str] = ()) -> Figure:
    """An empty figure of so many inches, higher by the rows of a `legend` below it."""
    figure = Figure(figsize=(width, height + legend_height(legend)), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def legend_columns(labels: Sequence[str]) -> int:
    """How many columns of a legend fit below a figure."""
    return max(1, min(4, len(labels), int(85 / (max(map(len, labels), default=1) + 6))))


def legend_height(labels: Sequence[str]) -> float:
    """Inches of a legend below a figure."""
    return 0.16 * -(-len(set(labels)) // legend_columns(labels))


def legend_below(figure: Any, labels: Sequence[str], **options: Any) -> None:
    """A legend below a figure or sub-figure."""
    figure.legend(loc="outside lower center", ncols=legend_columns(labels), **options)


def legend_above(axes: Any) -> None:
    """The legend of the axes in a row above them, where it covers nothing."""
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)


def heat_map(axes: Any, values: np.ndarray, rows: Sequence[str], title: str, norm: Normalize | None = None) -> None:
    """Cells of `values` (rows, columns), the first row on top, columns counted from 1, with a colour bar; from 0 to 1
    unless `norm` says otherwise. NaN, and 0 on a logarithmic scale, stay empty. Cells are shapes, not an image, so that
    an SVG stays sharp."""
    norm, (height, width) = norm or Normalize(0, 1), values.shape
    shown = np.ma.masked_invalid(np.where(values > 0, values, np.nan) if isinstance(norm, LogNorm) else values)
    edges = np.arange(width + 1) + 0.5, np.arange(height + 1) - 0.5
    colours = colormaps["RdBu_r" if norm.vmin == -1 else "viridis"].resampled(64)
    cells = axes.pcolormesh(*edges, shown, norm=norm, cmap=colours, ec="face", lw=0.2)
    axes.grid(visible=False)
    axes.set_title(title)
    axes.invert_yaxis()
    axes.set_yticks(range(height), list(map(plain, rows)))
    axes.set_xticks(range(1, width + 1))
    bar = axes.figure.colorbar(cells, ax=axes)
    bar.ax.grid(visible=False)
    if isinstance(norm, LogNorm) and shown.count():
        ticks = np.geomspace(shown.min(), shown.max(), 3)
        bar.set_ticks(ticks, labels=[f"{value:.1e}".replace("e-0", "e-") for value in ticks])
        bar.minorticks_off()


def log_norm(values: np.ndarray) -> LogNorm:
    """A logarithmic scale over the positive values, with some room."""
    positive = values[values > 0]
    return LogNorm(positive.min() / 1.2, positive.max() * 1.2) if len(positive) else LogNorm(0.1, 1.0)
