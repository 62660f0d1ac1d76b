"""The one table of all experiments: numbers for the CSV, text for people, and the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from retrieval_bench.columns import METRIC, column, metric_names
from retrieval_bench.config import portable
from retrieval_bench.evaluation.statistics import LEVEL, SEEDS, holm, paired_t_test, t_interval
from retrieval_bench.experiments.experiment import Experiment, Profile, Records, Row, changed_flag_words
from retrieval_bench.figures.style import info_with
from retrieval_bench.files import write_text
from retrieval_bench.groups import measured_elsewhere
from retrieval_bench.tables import TextTable

SETTINGS = {
    "data": ("dataset", "split", "classes", "image_size"),
    "train": ("epochs", "optimizer", "lr", "schedule"),
}
"""Choices that are columns of every table."""
CLOSED_SET = "Top-1 accuracy of the classifier and R@K of its features"


def measured_table(rows: Sequence[Row], records: Records, ranked: bool = False) -> pd.DataFrame:
    """A line per row, numbers only: what the CSV holds.

    Per metric (``recall_at_K``, and ``accuracy`` first in a closed set) its mean over seeds as a fraction, ``_ci95``
    (half of the t-interval, empty for one seed) and ``_reported``; where the runs were measured on other data sets,
    what :func:`~retrieval_bench.groups.measured_elsewhere` says of them, with ``_ci95``; ``sd_over_draws`` of the first
    metric, for routes that are drawn at test; ``difference`` of the first metric to the row ``against`` (mean over the
    seeds that both have) with ``_ci95``; ``parameters`` and ``macs`` (empty for evaluation modes, whose network would
    be another); ``images_seen`` in the training, rejected passes included, and ``per_1000_images``, the first metric's
    share; where a strategy prunes channels, ``search_images_seen`` before that; choices (:data:`SETTINGS`); and the
    columns of the rows.

    Args:
        rows: the experiment's rows.
        records: of each row that was run.
        ranked: best row first, and every other one against it. Adds ``rank`` by the mean of the first metric;
            ``p_value`` of the paired t-test over seeds and ``p_holm``, corrected over the rows; ``is_tied``, whether
            nothing significant separates the row from the best one (empty where fewer than three seeds leave that
            open).
    """
    elsewhere = measured_elsewhere([record for several in records.values() for record in several])
    table = pd.DataFrame([_line(entry, records, elsewhere) for entry in rows])
    if not ranked:
        return table
    first = rows[0].metrics[0]
    order = table.sort_values(first, ascending=False, na_position="last", kind="stable").index
    best = rows[order[0]]
    rows = [replace(rows[place], against="" if rows[place] is best else best.name) for place in order]
    table = pd.DataFrame([_line(entry, records, elsewhere) for entry in rows])
    pairs = [_pairs(entry, entry.against, first, records) for entry in rows]
    p_values = [paired_t_test(*np.transpose(several))[2] if len(several) >= SEEDS else np.nan for several in pairs]
    corrected = holm(p_values)
    table.insert(0, "rank", table[first].rank(ascending=False, method="min").astype("Int64"))
    is_tied = [None if np.isnan(p) else bool(p >= LEVEL) for p in corrected]
    return table.assign(p_value=p_values, p_holm=corrected, is_tied=is_tied)


def _line(entry: Row, records: Records, elsewhere: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    own, first, config = records.get(entry.name, []), entry.metrics[0], entry.config
    line: dict[str, Any] = {
        "row": entry.name,
        "strategy": portable(config).strategy_label,
        "loss": config.loss.loss,
        "seeds": len(own),
    }
    metrics = {record.seed: entry.measured(record) for record in own}
    for name in entry.metrics:
        line[name], line[f"{name}_ci95"] = _mean([values[name] for values in metrics.values() if name in values])
        line[f"{name}_reported"] = entry.reported.get(name)
    others = [] if entry.eval_mode else [elsewhere[record.id] for record in own if record.id in elsewhere]
    for name in metric_names(others[0]) if others else ():
        line[name], line[f"{name}_ci95"] = _mean([values[name] for values in others])
    drawn = [values[f"{first}_sd"] for values in metrics.values() if "draws" in values]
    line |= {"sd_over_draws": _mean(drawn)[0], "against": entry.against}
    pairs = _pairs(entry, entry.against, first, records)
    line["difference"], line["difference_ci95"] = _mean([one - other for one, other in pairs])
    for name in ("parameters", "macs", "images_seen", "train_seconds"):
        is_other_network = entry.eval_mode and name in ("parameters", "macs")  # the record counts the usual one
        line[name] = None if is_other_network else _mean([record.cost[name] for record in own])[0]
    seen, value = line["images_seen"], line[first]
    line["per_1000_images"] = round(1000 * value / seen, 6) if seen and value is not None else None
    searches = [part["search_images_seen"] for record in own if (part := info_with(record, "search_images_seen"))]
    if searches:
        line["search_images_seen"] = _mean(searches)[0]
    settings = {name: getattr(getattr(config, part), name) for part, names in SETTINGS.items() for name in names}
    return line | settings | dict(entry.columns)


def _pairs(entry: Row, against: str, metric: str, records: Records) -> list[tuple[float, float]]:
    """The metric of the row and of the other one, for each seed that both have."""
    others = {record.seed: record.metrics for record in records.get(against, [])}
    own = [(entry.measured(record), others.get(record.seed, {})) for record in records.get(entry.name, [])]
    return [(values[metric], other[metric]) for values, other in own if metric in values and metric in other]


def _mean(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and half of the 95 % t-interval; None for what too few values do not give."""
    if not values:
        return None, None
    return round(float(np.mean(values)), 6), (round(float(t_interval(values)[1]), 6) if len(values) > 1 else None)


def readable_table(table: Any) -> pd.DataFrame:
    """The same as text for people: percentages, reported values beside measured ones, only columns that say something;
    ``=`` behind ranks that nothing significant separates from the first, ``?`` where seeds are too few."""
    names = [name for name in table if METRIC.fullmatch(name)]
    first, shown = column(names[0]), pd.DataFrame(index=table.index)

    def texts(name: str, like: str = "", sign: str = "") -> list[str]:
        halves = table[f"{name}_ci95"] if f"{name}_ci95" in table else [None] * len(table)
        return [column(like or name).text(*pair, sign=sign) for pair in zip(table[name], halves, strict=True)]

    if "rank" in table:
        marks = {True: " =", False: "", None: " ?"}
        shown["rank"] = [
            "" if rank is pd.NA else f"{rank}{marks[is_tied] if number else ''}"
            for number, (rank, is_tied) in enumerate(zip(table["rank"], table["is_tied"], strict=True))
        ]
    shown["setting"] = table["row"]
    if "chosen" in table:
        shown["chosen"] = table["chosen"]
    if table["loss"].nunique() > 1:
        shown["loss"] = table["loss"].where(table["images_seen"] != 0, "-")
    for name in names:
        shown[column(name).title] = texts(name)
    if table["sd_over_draws"].notna().any():
        shown[f"{first.title}, sd over draws"] = texts("sd_over_draws", names[0])
    for name in names:
        if f"{name}_reported" in table and table[f"{name}_reported"].notna().any():
            shown[f"reported {column(name).title}"] = texts(f"{name}_reported", name)
    if table["difference"].notna().any():
        shown[f"{first.title} difference"] = texts("difference", names[0], "+")
    if "rank" in table:
        shown["p (Holm)"] = ["" if p != p else f"{p:.3f}" for p in table["p_holm"]]
    if "chosen" in table:
        shown[f"validation {column(table['objective'].iloc[0]).title}"] = texts(
            "validation", table["objective"].iloc[0]
        )
        failed = table["failed_trials"].map(lambda count: f" ({count} failed)" if count else "")
        shown["trials"] = table["trials"].astype(str) + failed
        shown["images in search"] = texts("search_images_seen", "images_seen")
    elif "search_images_seen" in table:
        shown["images in search"] = texts("search_images_seen", "images_seen")
    for name in ("parameters", "macs", "images_seen", "train_seconds"):
        shown[column(name).title] = texts(name)
    shown[f"{first.title} per 1,000 images"] = texts("per_1000_images", names[0])
    for name in ("optimizer", "lr", "schedule"):
        if table[name].nunique() > 1 and "chosen" not in table:
            shown[name] = table[name].astype(str).where(table["images_seen"] != 0, "-")
    return shown.assign(seeds=table["seeds"].astype(str))


def write_experiment(
    stem: Path,
    experiment: Experiment,
    profile: Profile,
    changed: Profile,
    rows: Sequence[Row],
    records: Records,
    notes: Sequence[str] = (),
) -> str:
    """Writes `stem` + .csv (numbers), .md and .tex (text), and .png where the experiment has a figure; nothing without
    records.

    Args:
        stem: path without ending.
        experiment: what is shown.
        profile: as it is.
        changed: as it was used.
        rows: of the table.
        records: of the rows.
        notes: a further line above the table, then Markdown below it.

    Returns:
        The Markdown.
    """
    if not records:
        return ""
    rows = [entry for entry in rows if entry.name in records or not entry.optional]
    metrics = "R@K" if changed.base.data.split != "closed_set" else CLOSED_SET
    lines = [
        _headline(profile, changed, records),
        *([experiment.source] if any(row.reported for row in rows) else []),
        *experiment.notes,
        f"{metrics} in percent: mean over seeds ± half of the 95 % t-interval; differences are paired by seed.",
        *notes[:1],
    ]
    table = measured_table(rows, records, ranked=bool(changed.trials))
    text = TextTable(" ".join(lines), readable_table(table))
    parts = [f"# {stem.name}", *lines, text.to_markdown()]
    plot = experiment.figure(records, lines[0]) if experiment.figure else None
    if plot is not None:
        plot.save(stem.with_name(f"{stem.name}.png"))
        parts += [f"![{experiment.about}]({stem.name}.png)", *(["\n".join(plot.notes)] if plot.notes else [])]
    markdown = "\n\n".join([*parts, *notes[1:]]) + "\n"
    write_text(stem.with_name(f"{stem.name}.csv"), table.assign(profile=lines[0]).to_csv(index=False))
    write_text(stem.with_name(f"{stem.name}.tex"), text.to_latex())
    write_text(stem.with_name(f"{stem.name}.md"), markdown)
    return markdown


def _headline(profile: Profile, changed: Profile, records: Records) -> str:
    """What was done, in a line that stands above every table and figure."""
    data, train, model = changed.base.data, changed.base.train, changed.base.model
    made = [record for several in records.values() for record in several]
    devices = "; ".join(sorted({record.device for record in made}))
    part = f", first {data.classes} classes of each side" if data.classes else ""
    part += f", first {data.train_per_class} training images of each class" if data.train_per_class else ""
    flags = changed_flag_words(profile, changed)
    changes = f", but for {', '.join(flags)}" if flags else ""
    return (
        f"Measured: {profile.about}{changes}. {data.dataset} "
        f"({data.split}{part}), {model.backbone} ({made[0].labels['weights']}), {data.image_size} px, {train.epochs} "
        f"epochs, batches of {train.batch_size}; {devices}."
    )
