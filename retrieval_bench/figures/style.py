"""What all figures share: a plot with its words, the look of strategies and axes, heat maps, legends.

Everything black is ink. In SVG ink has the page's text colour, so that one plot serves light and dark pages; what
should be fainter is ink with opacity.
"""

from __future__ import annotations

import html
import io
import pickle
import re
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from retrieval_bench.answer import BASELINES, strategy_name
from retrieval_bench.files import atomic_path, write_text
from retrieval_bench.records import Record
from retrieval_bench.strategies import BUILT_IN, STRATEGIES
from retrieval_bench.strategies.base import Look, Strategy

WIDTH = 4.0
"""Inches of a figure for a page: 288 points, so that letters are larger than in print on a phone of 390."""
SMALL, TEXT = 8.0, 9.0
"""Points of ticks and legends, and of everything else."""
FAINT = (0.0, 0.0, 0.0, 0.18)
"""Grid lines, and whatever stands behind data."""
STYLE: dict[Any, Any] = {
    **dict.fromkeys(("axes.labelsize", "axes.titlesize", "figure.titlesize"), TEXT),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), SMALL),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **{"axes.grid": True, "grid.color": FAINT, "grid.linewidth": 0.6, "axes.axisbelow": True, "lines.markersize": 4},
    **{
        "legend.columnspacing": 1.2,
        "svg.hashsalt": "retrieval_bench",
        "svg.fonttype": "none",
        "text.parse_math": False,
    },
}
"""Letters of two sizes, no formulas between dollar signs, a faint grid below the data, no frame above and right; SVG
with text, the same each time."""
SERIES = 12
"""Most series of a figure; the others share a look."""
LONGEST = 50
"""Letters of a line in a legend."""
OTHERS = "other strategies"
BEST = "#2a9d4e"
"""Green of what is best, on white and on black."""
NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


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
        with atomic_path(path) as temporary:
            self._draw(temporary, self.title, dpi=200, format="png", facecolor="white")

    def svg(self) -> str:
        """The plot as an ``<svg>`` element for a page: as wide as its parent, without background, ink in the page's
        text colour, letters as text. The same plot gives the same bytes, and ids that no other plot has."""
        stream = io.StringIO()
        nameless = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        self._draw(stream, "", format="svg", transparent=True, metadata=nameless)
        view_box, body = re.findall(r'<svg [^>]*viewBox="([^"]+)"[^>]*>(.*)</svg>', stream.getvalue(), re.DOTALL)[0]
        body = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)  # as the page's
        body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
        body = re.sub(r"((?:fill|stroke): ?)#000000", r"\1currentColor", body)
        body = re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", "sans-serif", body)
        words = f"<title>{html.escape(self.title)}</title>\n<desc>{html.escape(self.summary)}</desc>"
        prefix = "f" + sha256((words + body).encode()).hexdigest()[:10]
        body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", body)
        text = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
            f'width="100%" viewBox="{view_box}" fill="currentColor" stroke-linejoin="round" stroke-linecap="butt">\n'
            f"{words}{body}</svg>\n"
        )
        return NOT_XML.sub("", text)

    def _draw(self, target: Any, heading: str, **options: Any) -> None:
        """Writes a copy of the figure, since the layout of a second drawing differs from the first; letters of other
        scripts, which become boxes in a PNG, stay text in an SVG."""
        figure = pickle.loads(pickle.dumps(self.figure))
        width, height = figure.get_size_inches()
        with rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")
            if lines := textwrap.wrap(heading, width=round(58 * width / WIDTH)):
                figure.suptitle("\n".join(lines), fontsize=TEXT, parse_math=False)
                figure.set_size_inches(width, height + 0.05 + 0.15 * len(lines))
            figure.savefig(target, **options)


def info_with(record: Record, key: str) -> dict[str, Any]:
    """What the part of the run that reports `key` found out (``Record.info``); empty if none does."""
    return next((part for part in record.info.values() if isinstance(part, dict) and key in part), {})


def look_of(label: str) -> dict[str, Any]:
    """Arguments of ``Axes.plot`` for a strategy, a chain or a label of either; options change nothing. A chain has the
    colour of its first part, and the marker and the edge of its last."""
    if label == OTHERS:
        return {"color": Strategy.look.colour, "marker": "o", "mfc": "none", "alpha": 0.6}
    names = strategy_name(label).split("+")
    first, last = _look(names[0]), _look(names[-1])
    return {"color": first.colour, "marker": last.marker, "markeredgecolor": last.colour}


def _look(name: str) -> Look:
    """The look of one strategy; that of the user's own follows from its name, since figures import no such code."""
    if name in BUILT_IN or not name.isidentifier():
        return STRATEGIES.get(name, Strategy).look
    number = int(sha256(name.encode()).hexdigest(), 16)
    colours = sorted(STRATEGIES[each].look.colour for each in BUILT_IN)
    return Look(colours[number % len(colours)], "*PXd"[number // len(colours) % 4])


def series_of(labels: Iterable[str]) -> list[str]:
    """The strategy of each label, the most important ones first; of more than :data:`SERIES` the later ones but for the
    baselines are :data:`OTHERS`."""
    names = list(map(strategy_name, labels))
    kept = sorted(dict.fromkeys(names), key=lambda name: name not in BASELINES)
    if len(kept) > SERIES:
        kept = kept[: SERIES - 1]
    return [name if name in kept else OTHERS for name in names]


def line_style(looks: Sequence[Any], number: int) -> dict[str, str]:
    """The line style of a plot's line, another one than those of the lines of the same look before it; from the fifth
    such line on its markers are hollow."""
    before = looks[:number].count(looks[number])
    return {"ls": ("-", "--", ":", "-.")[before % 4], **({"mfc": "none"} if before >= 4 else {})}


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure of so many inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def figure_of_columns(count: int, heights: Sequence[float]) -> tuple[Figure, Any]:
    """A figure of `count` columns of axes of these heights in inches, and the axes, array (columns, rows)."""
    figure = new_figure(sum(heights), WIDTH * count)
    return figure, figure.subplots(len(heights), count, height_ratios=heights, squeeze=False).T


def legend_below(axes: Any, drop: float = 0.42) -> None:
    """What the axes show in rows `drop` inches below them, each label once; the figure grows by the rows."""
    handles, labels = axes.get_legend_handles_labels()
    labels = [label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…" for label in labels]
    first = dict(reversed([*zip(labels, handles, strict=True)]))  # of equal labels
    labels = list(dict.fromkeys(labels))
    columns = max(1, min(3, len(labels), int(62 / (max(map(len, labels), default=1) + 6))))
    below = axes.transAxes + ScaledTranslation(0, -drop, axes.figure.dpi_scale_trans)
    handles = [first[label] for label in labels]
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": below}
    axes.legend(handles, labels, ncols=columns, borderaxespad=0, handletextpad=0.4, **place)
    width, height = axes.figure.get_size_inches()
    axes.figure.set_size_inches(width, height + 0.17 * -(-len(labels) // columns))


def epoch_axis(axes: Any, **labels: Any) -> None:
    """Epochs as whole numbers along the axes, and other properties of them."""
    axes.set(xlabel="epoch", **labels)
    axes.xaxis.get_major_locator().set_params(integer=True)


def heat_map(
    axes: Any, values: np.ndarray, rows: Sequence[str], title: str, scale: Literal["share", "signed", "log"] = "share"
) -> None:
    """Cells of `values` (rows, blocks), the first row on top, blocks counted from 1, with a colour bar: from 0 to 1,
    from -1 to 1, or logarithmic over all positive values. NaN, and 0 on a logarithmic scale, stay empty. Cells are
    shapes, not an image, so that an SVG stays sharp."""
    shown = np.ma.masked_invalid(np.where(values > 0, values, np.nan) if scale == "log" else values)
    low, high = (shown.min(), shown.max()) if shown.count() else (0.1, 1.0)
    norm = LogNorm(low / 1.2, high * 1.2) if scale == "log" else Normalize(-1 if scale == "signed" else 0, 1)
    edges = np.arange(values.shape[1] + 1) + 0.5, np.arange(len(values) + 1) - 0.5
    colours = colormaps["RdBu_r" if scale == "signed" else "viridis"].resampled(64)
    cells = axes.pcolormesh(*edges, shown, norm=norm, cmap=colours, ec="face", lw=0.2)
    axes.grid(visible=False)
    ticks = range(1, values.shape[1] + 1, 1 + values.shape[1] // 6)
    axes.set(title=textwrap.fill(title, 40), xlabel="block", xticks=ticks)
    axes.invert_yaxis()
    axes.set_yticks(range(len(rows)), rows)
    bar = axes.figure.colorbar(cells, ax=axes)
    bar.ax.grid(visible=False)
    if scale == "log":
        ticks = np.geomspace(low, high, 3)
        bar.set_ticks(ticks, labels=[f"{value:.1e}".replace("e-0", "e-") for value in ticks])
        bar.minorticks_off()
