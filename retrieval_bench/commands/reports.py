"""The commands that look at records: the leaderboard, and two runs side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from retrieval_bench.errors import UserError

Positional = tyro.conf.Positional


@dataclass(frozen=True)
class Leaderboard:
    """Build leaderboard.csv and leaderboard.md from the records, and print the table; or part of it, in another form."""

    results: Path = Path("results/local")
    """folder that holds runs/"""
    dataset: tuple[str, ...] = ()
    """only rows of these data sets"""
    split: tuple[str, ...] = ()
    """only of these splits"""
    backbone: tuple[str, ...] = ()
    """only of these backbones"""
    loss: tuple[str, ...] = ()
    """only of these losses"""
    strategy: tuple[str, ...] = ()
    """only of these strategies, with or without their options in brackets"""
    where: tuple[str, ...] = ()
    """only rows with COLUMN=VALUE (columns of leaderboard.csv)"""
    by: tuple[str, ...] = ()
    """a row per value of these columns: means over configurations, within each protocol"""
    format: Literal["text", "markdown", "latex", "html", "csv", "json"] = "text"
    """what is printed or written to --output"""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """write the table there, and nothing else"""

    def execute(self) -> None:
        from retrieval_bench.files import write_text
        from retrieval_bench.leaderboard import build_table, choose_rows, group_rows, row_keys, runs_by_row
        from retrieval_bench.records import read_records
        from retrieval_bench.tables import print_table, render, write_tables

        check_results(self.results)
        if self.output is not None and self.output.is_dir():
            raise UserError(f"{self.output}: is a folder; name a file")
        wanted = self._wanted()
        if not (wanted or self.by or self.output) and self.format == "text":
            print_table(write_tables(self.results))
            return
        records = list(read_records(self.results))
        if not records:
            raise UserError(f"{self.results}: no records in runs/; `make bench` makes the first ones")
        table = build_table(records)
        if wanted:  # the rows that are left are ranked among themselves
            runs = runs_by_row(records)
            table = build_table([record for key in row_keys(choose_rows(table, wanted)) for record in runs[key]])
        table = group_rows(table, self.by) if self.by else table
        if self.output is None and self.format == "text":
            print_table(table, self.by)
            return
        text = render(table, self.format, self.by, published=set(wanted) <= {"dataset"})
        if self.output is None:
            print(text, end="")
        else:
            write_text(self.output, text)

    def _wanted(self) -> dict[str, tuple[str, ...]]:
        """Values by column."""
        chosen = {name: getattr(self, name) for name in ("dataset", "split", "backbone", "loss", "strategy")}
        wanted = {name: values for name, values in chosen.items() if values}
        for word in self.where:
            column, equals, value = word.partition("=")
            if not equals:
                raise UserError(f"--where {word}: say COLUMN=VALUE, such as epochs=4")
            if getattr(self, column, ()):
                raise UserError(f"--where {word}: give the values of --{column} there or here, not both")
            wanted[column] = (*wanted.get(column, ()), value)
        return wanted


@dataclass(frozen=True)
class Compare:
    """Compare two runs, or two configurations over their seeds: metrics with intervals and p-values, queries won and lost, choices."""

    first: Positional[str]
    """id of a run (or the beginning of one, or its file), or the hash of a configuration (all its seeds)"""
    second: Positional[str]
    """the other"""
    results: Path = Path("results/local")
    """folder that holds runs/"""
    json: bool = False
    """print JSON"""

    def execute(self) -> None:
        import json
        from dataclasses import asdict

        from retrieval_bench.comparison import compare, to_lines
        from retrieval_bench.records import finite

        check_results(self.results)
        found = compare(self.first, self.second, self.results)
        print(
            json.dumps(finite(asdict(found)), allow_nan=False, default=float)
            if self.json
            else "\n".join(to_lines(found))
        )


@dataclass(frozen=True)
class Report:
    """Write one HTML file with tables, figures and galleries that opens in any browser, without a network."""

    results: Path = Path("results/local")
    """folder that holds runs/ and details/"""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """the file; <results>/report.html by default"""
    title: str = "Which way of fine-tuning gives the best retrieval embeddings?"
    """of the page"""
    megabytes: float = 15.0
    """size of the page; galleries and figures that do not fit are left out, those of the best rows last"""

    def execute(self) -> None:
        from retrieval_bench.files import check_writable
        from retrieval_bench.progress import logger
        from retrieval_bench.report.page import write_report

        check_results(self.results)
        if self.megabytes < 1:
            raise UserError(f"--megabytes {self.megabytes}: give 1 or more")
        output = self.output or self.results / "report.html"
        check_writable(output.parent, "--output")
        made = write_report(self.results, output, self.title, self.megabytes)
        counted = f"{made['configurations']} configurations, {made['figures']} figures, {made['galleries']} galleries"
        logger.info(f"{output}: {counted}, {made['bytes'] / 1e6:.1f} MB")
        if made["left_out"]:
            logger.info(
                f"{made['left_out']} figures or galleries are left out for want of room; --megabytes gives more"
            )


def check_results(results: Path) -> None:
    """Raises :class:`UserError` for a folder that does not exist."""
    if not results.is_dir():
        raise UserError(f"{results}: no such folder; --results names the one that holds runs/")
