"""The columns that people compare, each described once: leaderboard, experiment tables, comparison, report, card and
plots read them here.

To show one more metric or cost, add its line to :data:`COLUMNS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

METRIC = re.compile(r"recall_at_([1-9][0-9]{0,8})|map_at_r|accuracy|gain|elsewhere(?:_on_(?!.*_ci95)(.+))?")
"""Metrics that tables show: fractions, or differences of fractions, the higher the better."""


@dataclass(frozen=True)
class Column:
    """How one number is shown.

    Attributes:
        title: head of a table's column.
        scale: a number is divided by this before it is shown.
        form: format of the scaled number.
        axis: label of a plot's axis.
        is_cost: less is better.
        shown: in tables for people: always, where a row has it (``measured``), or only in CSV and JSON (``never``).
        of_machine: says something about one machine and number of threads only.
        decimals: of a cost's mean in CSV and JSON; of metrics there are six.
    """

    title: str
    scale: float = 1.0
    form: str = "{:.2f}"
    axis: str = ""
    is_cost: bool = False
    shown: Literal["always", "measured", "never"] = "measured"
    of_machine: bool = False
    decimals: int = 0

    def text(self, value: float | None, half: float | None = None, sign: str = "") -> str:
        """The number as text, with half of its confidence interval where that is above 0; empty for None and NaN."""
        if value is None or value != value:
            return ""
        form = self.form.replace("+", "")
        text = form.replace("{:", "{:+" if "+" in self.form + sign else "{:").format(self.scaled(value))
        return text if not half or half != half else f"{text} ± {form.format(self.scaled(half))}"

    def scaled(self, value: float) -> float:
        """The number as it is shown; a percentage is 100 times a fraction, which rounds differently from / 0.01."""
        return value / self.scale if self.scale >= 1 else value * round(1 / self.scale)


COLUMNS = {
    "map_at_r": Column("MAP@R", 0.01, axis="MAP@R, %"),
    "accuracy": Column("top-1", 0.01, axis="top-1 accuracy, %"),
    "gain": Column("gain", 0.01, "{:+.2f}", "R@1 at home less that of frozen features, points"),
    "elsewhere": Column("elsewhere", 0.01, "{:+.2f}", "R@1 elsewhere less that of frozen features, points"),
    "parameters": Column("params", 1e6, "{:.2f} M", "parameters, millions", True, "always"),
    "trained_parameters": Column("trained params", 1e6, "{:.2f} M", "trained parameters, millions", True, "never"),
    "macs": Column("MACs", 1e6, "{:.0f} M", "multiply-accumulates per image, millions", True, "always"),
    "images_seen": Column("images seen", 1, "{:,.0f}", "images seen in training", True, "always"),
    "train_seconds": Column("train s", 1, "{:.0f}", "training, seconds", True, "always", of_machine=True, decimals=1),
    "latency_ms": Column("ms", 1, "{:.1f}", "latency of one image, milliseconds", True, of_machine=True, decimals=3),
    "peak_memory_mb": Column("MB", 1, "{:.0f}", "peak memory, MB", True, "never", of_machine=True),
}
"""Columns by name; ``recall_at_<K>`` and ``elsewhere_on_<set>`` are families of their own (:func:`column`)."""

RECORDED_COSTS = tuple(name for name, column in COLUMNS.items() if column.is_cost)
"""All costs of the leaderboard's CSV."""
COSTS = tuple(name for name in RECORDED_COSTS if COLUMNS[name].shown != "never")
"""Costs that people compare."""


def column(name: str) -> Column:
    """The column called `name`, Recall@K for any K and Recall@1 on any other data set among them; a KeyError for a name
    that nothing is known of."""
    if name in COLUMNS:
        return COLUMNS[name]
    match = METRIC.fullmatch(name)
    if match is None:
        raise KeyError(name)
    if match[2]:
        return Column(f"R@1 on {match[2]}", 0.01)
    return Column(f"R@{match[1]}", 0.01, axis=f"Recall@{match[1]}, %")


def metric_names(names: Iterable[object]) -> list[str]:
    """The metrics among `names`: Recall@K by K, then the others in their order."""
    found = filter(None, (METRIC.fullmatch(str(name)) for name in names))
    return [match[0] for match in sorted(found, key=lambda match: int(match[1] or 1 << 62))]
