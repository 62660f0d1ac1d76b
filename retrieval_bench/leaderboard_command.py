"""The command ``leaderboard``; it answers soon, since nothing here imports torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import tyro

from retrieval_bench.answer import answer_text, print_answers
from retrieval_bench.errors import UserError, unknown
from retrieval_bench.files import write_text
from retrieval_bench.groups import group_rows
from retrieval_bench.leaderboard import Format, leaderboard, plain_text, print_table, render, write_tables
from retrieval_bench.records import ResultsFolder


@dataclass(frozen=True)
class Leaderboard:
    """Build leaderboard.csv and leaderboard.md from the records, and print the answer that they give and the table; or
    part of it, in another form."""

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
    format: Format = "text"
    """what is printed or written to --output; LaTeX needs its package booktabs"""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """write the table there, and nothing else"""

    def execute(self) -> None:
        results = ResultsFolder(self.results).existing()
        if self.output is not None and self.output.is_dir():
            raise UserError(f"{self.output}: is a folder; name a file")
        conditions = self._conditions()
        if not (conditions or self.by or self.output) and self.format == "text":
            records = results.read_records()
            table = write_tables(results, records)
            print_answers(records, table)
            print_table(table)
            return
        records = results.require_records()
        table = every = leaderboard(records)  # what is best depends on all rows, whichever are shown
        table = select_rows(table, conditions) if conditions else table
        first = answer_text(records, every, table) if self.format == "text" and not self.by else ""
        table = group_rows(table, self.by) if self.by else table
        is_shown = self.output is None and self.format == "text"
        text = first + render(table, self.format, self.by, reported=set(conditions) <= {"dataset"} and not is_shown)
        if self.output is None:
            print(text, end="")
        else:
            write_text(self.output, text)

    def _conditions(self) -> dict[str, tuple[str, ...]]:
        """Values by column."""
        flags = {name: getattr(self, name) for name in ("dataset", "split", "backbone", "loss", "strategy")}
        conditions = {name: values for name, values in flags.items() if values}
        for word in self.where:
            column, equals, value = word.partition("=")
            if not equals:
                raise UserError(f"--where {word}: write COLUMN=VALUE, such as epochs=4")
            conditions[column] = (*conditions.get(column, ()), value)
        return conditions


def select_rows(table: Any, conditions: Mapping[str, Collection[str]]) -> Any:
    """Those rows of a leaderboard whose columns have one of the given values, as text (a strategy with or without
    options); raises :class:`UserError` for no such column, or a value that no row has."""
    is_selected = pd.Series(True, index=table.index)
    for name, values in conditions.items():
        if name not in table:
            raise unknown("column", name, map(str, table))
        texts = table[name].map(plain_text)
        without_options = texts.str.replace(r"\([^)]*\)", "", regex=True) if name == "strategy" else texts
        asked, known = {*map(plain_text, values)}, {*texts, *without_options}
        for value in sorted(asked - known):
            raise unknown(name, value, known)
        is_selected &= texts.isin(asked) | without_options.isin(asked)
    if not is_selected.any():
        listed = ", ".join(f"{name} {' or '.join(values)}" for name, values in conditions.items())
        raise UserError(f"no row has {listed}, all together")
    return table[is_selected].reset_index(drop=True)
