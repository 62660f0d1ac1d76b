"""The columns that people compare, each described once: leaderboard, experiment tables, comparison, report, card and
plots read them here.

To show one more metric or cost, add its line to :data:`COLUMNS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

METRIC = re.compile(r"recall_at_([1-9][0-9]{0,8})|map_at_r|accuracy")
"""Metrics that tables show: fractions, the higher the better."""


@dataclass(frozen=True)
class Column:
    """How one number is shown.

    Attributes:
        title: head of a table's column.
        scale: a number is divided by this before it is shown.
        form: format of the scaled number; percentages have a sign and an interval in theirs.
        axis: label of a plot's axis.
        is_cost: less is better.
        in_every_table: shown even where no row has it.
    """

    title: str
    scale: float = 1.0
    form: str = "{:.2f}"
    axis: str = ""
    is_cost: bool = False
    in_every_table: bool = False

    def text(self, value: float | None, half: float | None = None, sign: str = "") -> str:
        """The number as text, with half of its confidence interval where that is above 0; empty for None and NaN."""
        if value is None or value != value:
            return ""
        form = self.form.replace("{:", "{:" + sign)
        text = form.format(value / self.scale)
        return text if not half or half != half else f"{text} ± {self.form.format(half / self.scale)}"


COLUMNS = {
    "map_at_r": Column("MAP@R", 0.01, axis="MAP@R, %"),
    "accuracy": Column("top-1", 0.01, axis="top-1 accuracy, %"),
    "parameters": Column("params", 1e6, "{:.2f} M", "parameters, millions", True, True),
    "macs": Column("MACs", 1e6, "{:.0f} M", "multiply-accumulates per image, millions", True, True),
    "images_seen": Column("images seen", 1, "{:,.0f}", "images seen in training", True, True),
    "train_seconds": Column("train s", 1, "{:.0f}", "training, seconds", True, True),
    "latency_ms": Column("ms", 1, "{:.1f}", "latency of one image, milliseconds", True),
}
"""Columns by name; ``recall_at_<K>`` is a family of its own (:func:`column`)."""

COSTS = tuple(name for name, shown in COLUMNS.items() if shown.is_cost)


def column(name: str) -> Column:
    """The column called `name`, Recall@K for any K among them; a KeyError for a name that nothing is known of."""
    if name in COLUMNS:
        return COLUMNS[name]
    match = METRIC.fullmatch(name)
    if match is None:
        raise KeyError(name)
    return Column(f"R@{match[1]}", 0.01, axis=f"Recall@{match[1]}, %")


def metric_names(names: Iterable[object]) -> list[str]:
    """The metrics among `names`: Recall@K by K, then MAP@R and accuracy in their order."""
    found = [name for name in map(str, names) if METRIC.fullmatch(name)]
    return sorted(found, key=_depth)


def _depth(metric: str) -> int:
    match = METRIC.fullmatch(metric)
    return int(match[1]) if match and match[1] else 1 << 62
