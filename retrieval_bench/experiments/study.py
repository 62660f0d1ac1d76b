"""A study: named rows of runs that regenerate a table of a paper, quoted and measured values side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

from retrieval_bench.config import RunConfig
from retrieval_bench.data.table import ImageTable
from retrieval_bench.errors import UserError
from retrieval_bench.identity import changed_flags, portable
from retrieval_bench.strategies import only_used

PERCENT = 100
NOTHING = "drawn patterns and an untrained network: shows that everything works, measures nothing"
"""About profiles on synthetic data."""
Record = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One row of a study, run once per seed.

    Attributes:
        name: what the table calls it.
        config: the run, without its seed.
        quoted: what the paper reports in percent, by the metric's name (``recall_at_1``).
        against: name of the row that it is compared with, seed by seed.
        variant: the way to use the trained network whose metrics count (``Strategy.eval_modes``); the usual way if empty.
        more: metrics that the table shows beside Recall@K.
    """

    name: str
    config: RunConfig
    quoted: dict[str, float] = field(default_factory=dict)
    against: str = ""
    variant: str = ""
    more: tuple[str, ...] = ()

    @property
    def metrics(self) -> list[str]:
        """The metrics that the table shows, the one that counts first."""
        first = ["accuracy"] if self.config.data.split == "closed_set" else []
        return [*first, *(f"recall_at_{k}" for k in self.config.ks), *self.more]

    def measured(self, record: Record) -> dict[str, Any]:
        """The metrics of a record that count for this row; what was not measured is missing."""
        return record.get("variants", {}).get(self.variant, {}) if self.variant else record["metrics"]


@dataclass(frozen=True)
class Study:
    """A table to regenerate.

    Attributes:
        about: one line for the list of studies.
        rows: from the configuration that all rows share to the rows.
        profiles: its sizes by name; ``cpu`` is the usual one.
        notes: what a reader of the table must know, such as what marks mean.
        source: where quoted values come from.
        draw: writes the figure that belongs to it, if one does.
    """

    about: str
    rows: Callable[[RunConfig], list[Row]]
    profiles: dict[str, Profile]
    notes: tuple[str, ...] = ()
    source: str = ""
    draw: Draw | None = None


class Draw(Protocol):
    """Writes a PNG at `path` from the records of each row, by its name and in the order of seeds, or nothing if they hold nothing to draw.

    `images` has their pictures; `others` are all records of the results folder. Returns lines of Markdown that belong below the figure.
    """

    def __call__(
        self, records: dict[str, list[Record]], path: Path, heading: str, images: ImageTable, others: Sequence[Record]
    ) -> list[str]: ...


@dataclass(frozen=True)
class Profile:
    """How large a study is.

    Attributes:
        about: one line; says what is not as in the paper.
        base: the configuration that all rows share.
        seeds: one run per row and seed.
    """

    about: str
    base: RunConfig
    seeds: tuple[int, ...]


def row(
    base: RunConfig, name: str, strategy: str, quoted: dict[str, float] | None = None, against: str = "", **options: Any
) -> Row:
    """A row that differs from `base` in its strategy; `options` are the options of strategies that are part of it, by their names."""
    config = replace(base, strategy=strategy, options=replace(base.options, **options))
    return Row(name, replace(config, options=only_used(strategy, config.options)), quoted or {}, against)


def distinct_runs(runs: Sequence[tuple[Row, RunConfig]]) -> list[tuple[Row, RunConfig]]:
    """`runs` without those whose configuration came before: rows that use one trained network in several ways."""
    seen: dict[str, tuple[Row, RunConfig]] = {}
    for entry, config in runs:
        seen.setdefault(repr(config), (entry, config))
    return list(seen.values())


def grid(rows: Sequence[Row], seeds: Sequence[int], numbers: Sequence[int] = ()) -> list[tuple[Row, RunConfig]]:
    """All runs, or those of the rows with these `numbers` (from 1), seed by seed, so that an interrupted study still compares.

    Raises:
        UserError: no seed, a seed given twice, or a row that does not exist.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {' '.join(map(str, seeds))}: give at least one, each once")
    if any(not 1 <= number <= len(rows) for number in numbers):
        raise UserError(f"--rows {' '.join(map(str, numbers))}: the study has rows 1 to {len(rows)}")
    chosen = [entry for number, entry in enumerate(rows, start=1) if not numbers or number in numbers]
    return [(entry, replace(entry.config, seed=seed)) for seed in seeds for entry in chosen]


FREE = ("--dataset", "--backbone", "--weights", "--mean", "--std")
"""Flags that fill a profile in, and do not make another one of it."""


def changes(profile: Profile, base: RunConfig) -> list[str]:
    """The flags in which `base` is not what the profile says."""
    return [" ".join(words) for words in changed_flags(base, profile.base) if words[0] not in FREE]


def refuse_idle_flags(study: Study, profile: Profile, base: RunConfig) -> None:
    """Raises :class:`UserError` for a choice in `base` that changes no row, since the rows make that choice themselves."""
    rows = study.rows(base)
    for section in ("data", "model", "loss", "train", "evaluation", "options"):
        values: Any = getattr(base, section)
        for part in fields(values):
            usual = getattr(getattr(profile.base, section), part.name)
            if getattr(values, part.name) == usual:
                continue
            without: Any = {section: replace(values, **{part.name: usual})}
            if study.rows(replace(base, **without)) == rows:
                flag = part.name.replace("_", "-") + (".*" if section == "options" else "")
                raise UserError(
                    f"--{flag} changes nothing here: the rows of this study set it themselves, or do without"
                )


def measured_table(rows: Sequence[Row], records: dict[str, list[Record]]) -> Any:
    """A pandas table with a line per row, numbers only: what the CSV holds.

    Columns: ``row``, ``strategy``, ``loss``, ``seeds``; per metric (``recall_at_K``, and ``accuracy`` first in a closed set) its mean over
    seeds as a fraction, ``<metric>_ci95`` (half of the t-interval, empty for one seed) and ``<metric>_quoted`` (fraction);
    ``sd_over_draws`` of the first metric, for routes that are drawn at test; ``against``, ``difference`` of the first metric (mean over
    the seeds that both rows have) and its ``_ci95``; ``parameters`` and ``macs`` (empty for variants, whose network would be another);
    ``images_seen`` (of the training, rejected passes included) and ``per_1000_images``, the first metric's share; ``train_seconds``.

    Args:
        rows: the study's rows.
        records: the records of each row that was run, by the row's name.
    """
    import pandas as pd

    lines = []
    for entry in rows:
        found = records.get(entry.name, [])
        line: dict[str, Any] = {
            "row": entry.name,
            "strategy": portable(entry.config).strategy_label,
            "loss": entry.config.loss.loss,
        }
        line["seeds"] = len(found)
        values = {record["seed"]: entry.measured(record) for record in found}
        for name in entry.metrics:
            line[name], line[f"{name}_ci95"] = _mean([metrics[name] for metrics in values.values() if name in metrics])
            line[f"{name}_quoted"] = round(entry.quoted[name] / PERCENT, 6) if name in entry.quoted else None
        line["sd_over_draws"] = _mean(
            [metrics[f"{entry.metrics[0]}_sd"] for metrics in values.values() if "draws" in metrics]
        )[0]
        line["against"] = entry.against
        other = {record["seed"]: record["metrics"] for record in records.get(entry.against, [])}
        line["difference"], line["difference_ci95"] = _mean(_differences(values, other, entry.metrics[0]))
        for name in ("parameters", "macs", "images_seen", "train_seconds"):
            other_network = entry.variant and name in ("parameters", "macs")  # the record counts the usual one
            line[name] = None if other_network else _mean([record["cost"][name] for record in found])[0]
        seen, recall = line["images_seen"], line[entry.metrics[0]]
        line["per_1000_images"] = round(1000 * recall / seen, 6) if seen and recall is not None else None
        data, train = entry.config.data, entry.config.train
        line |= {name: getattr(data, name) for name in ("dataset", "split", "classes", "image_size")}
        line |= {name: getattr(train, name) for name in ("epochs", "optimizer", "lr", "schedule")}
        lines.append(line)
    return pd.DataFrame(lines)


def _differences(found: dict[int, dict[str, Any]], others: dict[int, dict[str, Any]], name: str) -> list[float]:
    """The metric less that of the other row, for each seed that both have."""
    return [
        metrics[name] - others[seed][name]
        for seed, metrics in found.items()
        if name in metrics and name in others.get(seed, {})
    ]


def _mean(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and half of the 95 % t-interval; None for what too few values do not give."""
    import numpy as np

    from retrieval_bench.evaluation.statistics import t_interval

    if not values:
        return None, None
    return round(float(np.mean(values)), 6), (round(float(t_interval(values)[1]), 6) if len(values) > 1 else None)


def readable_table(table: Any) -> Any:
    """The same for people: percentages, quoted values beside measured ones, only columns that say something."""
    import pandas as pd

    from retrieval_bench.leaderboard import METRIC
    from retrieval_bench.tables import metric_title, percent, scaled

    names = [name for name in table if METRIC.fullmatch(name)]
    shown = pd.DataFrame({"setting": table["row"]})
    if table["loss"].nunique() > 1:
        shown["loss"] = table["loss"].where(table["images_seen"] != 0, "-")
    for name in names:
        shown[metric_title(name)] = [percent(*pair) for pair in zip(table[name], table[f"{name}_ci95"], strict=True)]
    if table["sd_over_draws"].notna().any():
        shown[f"{metric_title(names[0])}, sd over draws"] = [percent(value) for value in table["sd_over_draws"]]
    for name in names:
        if table[f"{name}_quoted"].notna().any():
            shown[f"quoted {metric_title(name)}"] = [percent(value) for value in table[f"{name}_quoted"]]
    first = metric_title(names[0])
    if table["difference"].notna().any():
        pairs = zip(table["difference"], table["difference_ci95"], strict=True)
        shown[f"{first} difference"] = [percent(*pair, sign="+") for pair in pairs]
    shown["params"] = [scaled(value, 1e6, "{:.2f} M") for value in table["parameters"]]
    shown["MACs"] = [scaled(value, 1e9, "{:.3f} G") for value in table["macs"]]
    shown["images seen"] = [scaled(value, 1, "{:,.0f}") for value in table["images_seen"]]
    shown[f"{first} per 1,000 images"] = [scaled(value, 0.01, "{:.2f}") for value in table["per_1000_images"]]
    for name in ("optimizer", "lr", "schedule"):
        if table[name].nunique() > 1:
            shown[name] = table[name].astype(str).where(table["images_seen"] != 0, "-")
    shown["seeds"] = table["seeds"].astype(str)
    return shown
