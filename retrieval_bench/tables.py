"""Tables of text in Markdown, LaTeX and HTML by pandas, and for the terminal by rich."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

WIDEST = 40
"""Letters of the widest column in a terminal; longer cells are wrapped."""
LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "%&_#${}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"},
        **{"±": r"$\pm$", "†": r"$\dagger$", "‡": r"$\ddagger$", "☆": r"$\star$"},
    }
)


@dataclass(frozen=True)
class TextTable:
    """A table for people: what its rows share, and cells of text."""

    title: str
    cells: pd.DataFrame
    significance: Sequence[str] = ()
    """Per row ``best``, ``tie`` or nothing, which marks the row's first Recall@K."""

    @property
    def ranked(self) -> int:
        """Number of the column that ranks."""
        return next((number for number, name in enumerate(self.cells) if str(name).startswith("R@")), 0)

    def to_markdown(self) -> str:
        cells = self.marked(escape_markdown, "**{}**", "{} =")
        return str(cells.to_markdown(index=False, disable_numparse=True))

    def to_latex(self, caption: str = "") -> str:
        """Needs the LaTeX package booktabs. The caption is the title where none is given."""
        cells, caption = self.marked(escape_latex, r"\textbf{{{}}}", "{} $=$"), escape_latex(caption or self.title)
        columns = "l" + "r" * (len(cells.columns) - 1)
        return cells.to_latex(index=False, escape=False, column_format=columns, caption=caption)

    def to_html(self) -> str:
        cells = self.marked(lambda cell: html.escape(str(cell)), "<strong>{}</strong>", "{} =")
        with pd.option_context("display.max_colwidth", None):
            text = cells.to_html(index=False, escape=False, border=0, justify="left")
        return f"<h2>{html.escape(self.title)}</h2>\n{text}\n"

    def marked(self, escape: Callable[[object], str], best: str, tie: str) -> pd.DataFrame:
        """The cells, escaped, with those that rank the best row and ties in the forms `best` and `tie`."""
        cells = self.cells.astype(object).map(escape)
        cells.columns = [escape(name) for name in cells.columns]
        if self.significance:
            forms = {"best": best, "tie": tie}
            marked = zip(self.significance, cells.iloc[:, self.ranked], strict=True)
            cells.isetitem(self.ranked, [forms.get(significance, "{}").format(cell) for significance, cell in marked])
        return cells


def escape_markdown(cell: object) -> str:
    """Text that Markdown shows as it is, on one line; underscores and stars inside words need nothing."""
    return re.sub(r"([|<\\])", r"\\\1", " ".join(str(cell).split()))


def escape_latex(cell: object) -> str:
    """Text that LaTeX shows as it is."""
    return str(cell).translate(LATEX)


def to_terminal(tables: Iterable[TextTable]) -> str:
    """The tables as a terminal shows them, without colours."""
    console = Console(width=10_000, emoji=False)  # columns have their natural widths: a number is never cut
    with console.capture() as capture:
        for table in tables:
            drawn = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
            for name, cells in table.cells.items():
                justify = "left" if name in ("strategy", "loss", "backbone", "source") else "right"
                width = WIDEST if cells.astype(str).str.len().max() > WIDEST else None
                drawn.add_column(str(name), justify=justify, overflow="fold", width=width)
            marked = table.marked(lambda cell: escape_markup(str(cell)), "[bold]{} *[/bold]", "{} =")
            for row in marked.to_numpy().tolist():
                drawn.add_row(*row)
            console.print(table.title, highlight=False, markup=False)
            console.print(drawn)
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())
