"""Tables for people and for other programs: text, Markdown, LaTeX, HTML, CSV and JSON from one table of numbers."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from retrieval_bench.experiments.published import quoted_rows
from retrieval_bench.files import write_text
from retrieval_bench.leaderboard import COST_COLUMNS, LAST_COLUMNS, METRIC, PROTOCOL, build_table, plain_text
from retrieval_bench.progress import is_main_process
from retrieval_bench.records import read_records

Format = Literal["text", "markdown", "latex", "html", "csv", "json"]
LEGEND = (
    "Recall@K and MAP@R in percent, mean over seeds ± half of the 95 % t-interval; one row per configuration and kind of device. "
    "Bold: the highest mean of its protocol among rows of at least three seeds; =: not told apart from it (paired t-test over three "
    "common seeds or more, p from 0.05 on)."
)
GROUPED = (
    "Recall@K and MAP@R in percent, mean over configurations (each the mean over its seeds) ± half of the 95 % t-interval over "
    "configurations; nothing is ranked."
)
MARKS = "*: highest mean of its protocol among rows of three seeds or more; =: not told apart from it (paired t-test, p from 0.05 on)"
WIDEST = 40
"""Letters of the widest column in a terminal; longer cells go on in the next line."""
QUOTED = "quoted from papers, not measured here; settings differ from row to row"


@dataclass(frozen=True)
class Section:
    """The rows of one protocol as people read them.

    Attributes:
        title: names the protocol.
        shown: text; the columns that people compare.
        standing: per row ``best``, ``tie`` or nothing, which marks the cell of the metric that ranks.
    """

    title: str
    shown: Any
    standing: Sequence[str] = field(default=())

    def marked(self, best: str, tie: str, escape: Any = str) -> list[list[str]]:
        """The cells, escaped, with the ranking metric's in the form `best` or `tie` (``{}`` stands for the cell)."""
        column = next((place for place, name in enumerate(self.shown.columns) if name.startswith("R@")), 0)
        forms = {"best": best, "tie": tie}
        rows = [[escape(cell) for cell in row] for row in self.shown.to_numpy().tolist()]
        for row, standing in zip(rows, self.standing, strict=False):
            row[column] = forms.get(standing, "{}").format(row[column])
        return rows


def sections(table: Any, by: Sequence[str] = ()) -> list[Section]:
    """A section per protocol of a leaderboard, or of its rows grouped `by` columns."""
    keys = [name for name in PROTOCOL if name not in by and not (name == "files_fingerprint" and "dataset" in by)]
    groups: Any = table.groupby(keys, sort=False, dropna=False)
    found = []
    for title, (_, group) in zip(protocol_titles(group[keys].iloc[0] for _, group in groups), groups, strict=True):
        standing = group["standing"].tolist() if "standing" in group else ()
        found.append(Section(title, readable(group, by), standing))
    return found


def quoted_sections(datasets: Iterable[str]) -> list[Section]:
    """A section per data set with published figures."""
    found = []
    quoted: Any = quoted_rows(list(dict.fromkeys(datasets)))
    for name, group in quoted.groupby("dataset", sort=False):
        shown = group[["strategy", "backbone", "dim", "loss", "split"]].astype("object")
        shown["dim"] = [scaled(value, 1, "{:.0f}") for value in group["dim"]]
        shown = shown.astype(str)
        for metric in (column for column in group if METRIC.fullmatch(str(column)) and group[column].notna().any()):
            shown[metric_title(str(metric))] = [percent(value) for value in group[metric]]
        shown["source"] = group["quoted"].str.removeprefix("Quoted: ")
        found.append(Section(f"{name}: {QUOTED}", shown))
    return found


def protocol_titles(rows: Iterable[Any]) -> list[str]:
    """:func:`protocol_title` of a row of each protocol; those that differ in their files only say which."""
    rows = list(rows)
    titles = [protocol_title(row) for row in rows]
    return [
        f"{title}, files {row['files_fingerprint'] or 'unknown'}" if titles.count(title) > 1 else title
        for title, row in zip(titles, rows, strict=True)
    ]


def protocol_title(row: Any) -> str:
    """What the rows of a section share, in a line."""
    classes = row.get("classes")
    part = f"first {classes:.0f} classes" if classes and classes == classes else ""
    backbone = " ".join(
        text for text in (str(row.get("backbone", "")), f"({row['weights']})" if "weights" in row.index else "") if text
    )
    size = f"{row['image_size']:.0f} px" if "image_size" in row.index else ""
    parts = (str(row.get("dataset", "")), str(row.get("split", "")), part, backbone, size)
    return ", ".join(text for text in parts if text) or "all rows"


def readable(table: Any, by: Sequence[str] = ()) -> Any:
    """What people compare in rows of one protocol, as text: every choice that differs between them, percentages (with their intervals for
    Recall@1 and MAP@R), and costs; of grouped rows the columns `by` in place of choices. Options need no column of their own: the
    strategy's label shows those that differ from defaults."""
    if by:
        shown = pd.DataFrame(
            {name: table[name].map(plain_text).astype(str) for name in dict.fromkeys([*by, "configurations"])}
        )
    else:
        hidden = {
            *PROTOCOL,
            *COST_COLUMNS,
            *LAST_COLUMNS,
            "dim",
            "strategy",
            "seeds",
            "options",
            "standing",
            "difference",
            "p_value",
        }
        choices = [
            name for name in map(str, table) if name not in hidden and not METRIC.fullmatch(name.removesuffix("_ci95"))
        ]
        varying = [name for name in choices if table[name].astype(str).nunique() > 1]
        varying = ["dim", *varying] if table["dim"].nunique() > 1 else varying
        shown = pd.DataFrame(
            {name: table[name].astype(str) for name in dict.fromkeys(["strategy", "loss", "epochs", *varying, "seeds"])}
        )
        shown.loc[table["images_seen"] == 0, ["loss", "epochs"]] = "-"  # nothing was trained
    for name in (str(name) for name in table if METRIC.fullmatch(str(name)) and table[name].notna().any()):
        halves = table[f"{name}_ci95"] if name in ("recall_at_1", "map_at_r") else [None] * len(table)
        shown[metric_title(name)] = [percent(*pair) for pair in zip(table[name], halves, strict=True)]
    for name, (title, unit, form) in COSTS.items():
        if name in ("parameters", "macs", "images_seen", "train_seconds") or table[name].notna().any():
            shown[title] = [scaled(value, unit, form) for value in table[name]]
    return shown


COSTS = {
    "parameters": ("params", 1e6, "{:.2f} M"),
    "macs": ("MACs", 1e6, "{:.0f} M"),
    "images_seen": ("images seen", 1, "{:,.0f}"),
    "train_seconds": ("train s", 1, "{:.0f}"),
    "latency_ms": ("ms", 1, "{:.1f}"),
}
"""Title, unit and form of each cost that people compare; ``ms`` is for one image."""


def metric_title(name: str) -> str:
    """``recall_at_1`` as people write it: R@1."""
    return {"map_at_r": "MAP@R", "accuracy": "top-1"}.get(name) or "R@" + name.rsplit("_", 1)[1]


def percent(value: float | None, half: float | None = None, sign: str = "") -> str:
    """A fraction in percent, with half of its interval where that is not 0, as of features that nothing trained; nothing for None."""
    if value is None or value != value:
        return ""
    text = f"{100 * value:{sign}.2f}"
    return text if not half or half != half else f"{text} ± {100 * half:.2f}"


def scaled(value: Any, unit: float, form: str) -> str:
    """`value` in multiples of `unit`; nothing for None and NaN."""
    return "" if pd.isna(value) else form.format(value / unit)


def render(table: Any, form: Format, by: Sequence[str] = (), published: bool = True) -> str:
    """The table (grouped `by` columns) in one format: the readable ones a section per protocol, CSV and JSON all columns. With `published`,
    quoted rows about its data sets come apart and marked."""
    datasets = list(table["dataset"].unique()) if published and "dataset" in table else []
    if form in ("csv", "json"):
        quoted = quoted_rows(datasets)
        if form == "csv":
            both = (
                pd.concat([table.astype(object), quoted.astype(object)]) if len(quoted) else table
            )  # whole numbers stay whole
            return both.to_csv(index=False, lineterminator="\n")
        parts = {"measured": table, "quoted": quoted}
        return (
            json.dumps(
                {name: json.loads(str(part.to_json(orient="records"))) for name, part in parts.items()}, indent=1
            )
            + "\n"
        )
    found, legend = sections(table, by) + quoted_sections(datasets), GROUPED if by else LEGEND
    if form == "latex":
        return to_latex(found)
    return to_text(found) if form == "text" else {"markdown": to_markdown, "html": to_html}[form](found, legend)


def to_markdown(found: Iterable[Section], legend: str) -> str:
    """Sections in Markdown."""
    parts = [f"{legend}\n"]
    for section in found:
        escaped = section.marked("**{}**", "{} =", markdown_text)
        parts.append("\n".join([f"## {markdown_text(section.title)}", "", *_bars(section.shown, escaped), ""]))
    return "\n".join(parts)


def markdown_text(cell: str) -> str:
    """Text that Markdown shows as it stands, on one line; underscores and stars inside words need nothing."""
    return re.sub(r"([|<\\])", r"\\\1", " ".join(str(cell).split()))


def markdown_rows(shown: Any) -> list[str]:
    """A table of text as the lines of a Markdown table."""
    return _bars(shown, [[markdown_text(cell) for cell in row] for row in shown.to_numpy().tolist()])


def _bars(shown: Any, rows: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(line) + " |"
        for line in [[markdown_text(name) for name in shown.columns], ["---"] * len(shown.columns), *rows]
    ]


SPECIAL = {
    **{sign: f"\\{sign}" for sign in "%&_#${}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"},
    **{"±": r"$\pm$", "†": r"$\dagger$", "‡": r"$\ddagger$", "☆": r"$\star$"},
}


def latex_text(cell: str) -> str:
    """Text that LaTeX sets as it stands."""
    return "".join(SPECIAL.get(letter, letter) for letter in str(cell))


def to_latex(found: Iterable[Section]) -> str:
    """A ``tabular`` per section, the section's name in its last line."""
    tables = [
        latex_table(section.shown, [section.title], section.marked(r"\textbf{{{}}}", "{} $=$", latex_text))
        for section in found
    ]
    return "\n".join(tables)


def latex_table(shown: Any, notes: Sequence[str], rows: list[list[str]] | None = None) -> str:
    """A LaTeX ``tabular`` that ends with the notes; needs no package. `rows`: the cells in LaTeX, if they are not just `shown`."""
    rows = [[latex_text(cell) for cell in row] for row in shown.to_numpy().tolist()] if rows is None else rows
    count = len(shown.columns)
    lines = [" & ".join(line) + r" \\" for line in [[latex_text(name) for name in shown.columns], *rows]]
    below = [
        rf"\multicolumn{{{count}}}{{p{{0.95\linewidth}}}}{{\footnotesize {latex_text(note)}}} \\" for note in notes
    ]
    body = [r"\hline", lines[0], r"\hline", *lines[1:], r"\hline", *below]
    return "\n".join([r"\begin{tabular}{l" + "r" * (count - 1) + "}", *body, r"\end{tabular}"]) + "\n"


def to_html(found: Iterable[Section], legend: str) -> str:
    """A plain page with a table per section."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><meta charset="utf-8"><title>Leaderboard</title>',
        f"<p>{html.escape(legend)}</p>",
    ]
    for section in found:
        heads = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in section.shown.columns)
        rows = section.marked("<strong>{}</strong>", "{} =", lambda cell: html.escape(str(cell)))
        body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
        caption = f"<caption>{html.escape(section.title)}</caption>"
        parts.append(f"<table>{caption}\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table>")
    return "\n".join([*parts, "</html>", ""])


def to_text(found: Iterable[Section]) -> str:
    """Sections as a terminal shows them."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=10_000, emoji=False)  # columns have their natural widths: a number is never cut
    ranked = False
    with console.capture() as capture:
        for section in found:
            drawn = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
            for column in map(str, section.shown):
                longest = section.shown[column].str.len().max()
                justify = "left" if column in ("strategy", "loss", "backbone", "source") else "right"
                drawn.add_column(column, justify=justify, overflow="fold", width=WIDEST if longest > WIDEST else None)
            for row in section.marked("[bold]{} *[/bold]", "{} =", lambda cell: escape(str(cell))):
                drawn.add_row(*row)
            console.print(section.title, highlight=False, markup=False)
            console.print(drawn)
            ranked = ranked or any(section.standing)
    legend = [MARKS] if ranked else []
    return "\n".join([*(line.rstrip() for line in capture.get().splitlines()), *legend]) + "\n"


def print_table(table: pd.DataFrame, by: Sequence[str] = ()) -> None:
    """Prints the readable tables, one per protocol; of processes that work together only the first does."""
    if not is_main_process():
        return
    print(to_text(sections(table, by)) if len(table) else "no records yet: `make bench` makes the first ones\n", end="")


def write_tables(results: Path) -> pd.DataFrame:
    """Builds the table from ``<results>/runs`` and writes ``leaderboard.csv`` and ``leaderboard.md`` beside them."""
    table = build_table(list(read_records(results)))
    if len(table):
        write_text(results / "leaderboard.csv", render(table, "csv"))
        built = "Built from `runs/` by `make leaderboard`; `leaderboard.csv` has every column."
        write_text(results / "leaderboard.md", f"{built}\n\n{render(table, 'markdown')}")
    return table
