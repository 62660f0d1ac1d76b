"""Records to one table: a row per configuration with means over seeds, and which rows do not differ from the best."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from retrieval_bench import groups
from retrieval_bench.columns import COLUMNS, COSTS, METRIC, RECORDED_COSTS, column, metric_names
from retrieval_bench.files import write_text
from retrieval_bench.progress import is_main_process
from retrieval_bench.records import Record, ResultsFolder
from retrieval_bench.reported import reported_rows
from retrieval_bench.tables import TextTable, escape_markdown, to_terminal

Format = Literal["text", "markdown", "latex", "html", "csv", "json"]
FIRST_COLUMNS = (*groups.PROTOCOL[:5], "dim", "image_size", "loss", "strategy", "epochs", "seeds")
LAST_COLUMNS = ("device", "threads", "config_hash")
LEGEND = (
    "Recall@K and MAP@R in percent, mean over seeds ± half of the 95 % t-interval; one row per configuration and kind "
    "of device. Bold: the highest mean of its protocol among rows of at least three seeds; =: not significantly "
    "different from it (paired t-test over at least three common seeds, p from 0.05 on)."
)
LEGEND_OF_GROUPS = (
    "Recall@K and MAP@R in percent, mean over configurations (each the mean over its seeds) ± half of the 95 % "
    "t-interval over configurations; nothing is ranked."
)
LEGEND_OF_TEXT = (
    "*: highest mean of its protocol among rows of at least three seeds; =: not significantly different from it "
    "(paired t-test, p from 0.05 on)\n"
)
REPORTED = "{}: reported in papers, not measured here; settings differ from row to row"


def leaderboard(records: Sequence[Record]) -> pd.DataFrame:
    """One row per configuration and kind of device (CPU or GPU), best Recall@1 first within a protocol.

    Columns: those that people compare first, ``seeds`` (how many), for each metric its mean over seeds as a fraction
    and ``<metric>_ci95`` (half width of the t-interval; empty for one seed), :data:`groups.SIGNIFICANCE`
    (:func:`groups.compare_with_best`), mean costs (empty where they depend on the machine and a row's runs were made on
    several), then every other choice of the configuration. Of several records of a row and seed the newest counts.
    """
    if not records:
        return pd.DataFrame()
    by_row = runs_by_row(records)
    made = sorted((run for several in by_row.values() for run in several), key=_age)
    others = groups.measured_elsewhere(made)
    runs: Any = pd.DataFrame([_flat(run) | others.get(run.id, {}) for run in made])
    is_ambiguous = runs.groupby("weights")["digest"].transform("nunique") > 1  # files of one name
    named = runs.loc[is_ambiguous, ["weights", "digest"]].to_numpy()
    runs.loc[is_ambiguous, "weights"] = [f"{name} {digest}".rstrip() for name, digest in named]
    metrics = metric_names(runs)
    runs = runs.astype(dict.fromkeys([*metrics, *RECORDED_COSTS], "float64"))
    grouped = runs.groupby(["config_hash", "kind"], sort=False, dropna=False)
    summary = groups.summarize(grouped, metrics)
    table = grouped.head(1).set_index(["config_hash", "kind"], drop=False)  # choices of a row's first run
    table = table.drop(columns=summary, errors="ignore").join(summary).rename(columns={"size": "seeds"})
    for name in RECORDED_COSTS:
        decimals = COLUMNS[name].decimals
        table[name] = table[name].round(decimals) if decimals else table[name].round().astype("Int64")
    table["threads"] = table["threads"].astype(object)  # whole numbers stay whole beside empty cells
    several = groups.on_several_machines(grouped)
    table.loc[several, "threads"] = None
    table.loc[several, "device"] = grouped["device"].agg(lambda names: "; ".join(sorted(set(names))))[several]
    table = groups.sort_rows(table.rename_axis([None, None]), [*groups.PROTOCOL, metrics[0], "config_hash", "device"])
    table[[*groups.SIGNIFICANCE]] = groups.compare_with_best(table, by_row, metrics[0])
    first = [*FIRST_COLUMNS, *(part for name in metrics for part in (name, f"{name}_ci95"))]
    first += [*groups.SIGNIFICANCE, *RECORDED_COSTS]
    choices = [name for name in table if name not in (*first, *LAST_COLUMNS, "seed", "kind", "digest")]
    return table.reindex(columns=[*first, *choices, *LAST_COLUMNS]).reset_index(drop=True)


def runs_by_row(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """The runs behind each row of the table, by its configuration's hash and kind of device; seeds in order, of copies
    the newest."""
    rows: dict[tuple[str, str], dict[int, Record]] = defaultdict(dict)
    for record in sorted(records, key=_age):
        rows[record.config_hash, record.kind][record.seed] = record
    return {key: [runs[seed] for seed in sorted(runs)] for key, runs in rows.items()}


def _age(record: Record) -> tuple[str, str]:
    return str(record.finished), record.id


def row_keys(table: Any) -> list[tuple[str, str]]:
    """The keys of the table's rows in :func:`runs_by_row`."""
    return list(zip(table["config_hash"], table["device"].map(str).str.split(":").str[0], strict=True))


def _flat(record: Record) -> dict[str, Any]:
    """The record as one row: choices, labels, costs, metrics, and where it was made."""

    def scalar(value: Any) -> Any:
        return json.dumps(value) if isinstance(value, list | dict) else value

    sections = [values for name, values in record.config.items() if name != "options" and isinstance(values, dict)]
    choices = {name: scalar(value) for values in sections for name, value in values.items()}
    choices = {name: value for name, value in choices.items() if not METRIC.fullmatch(name)}
    if "sources" in choices:  # of the user's own code: files that differ
        choices["sources"] = "+".join(dict.fromkeys(re.findall(r"sha256:(\w{8})", choices["sources"])))
    fingerprints = (choices.get("files_fingerprint"), choices.pop("sides_fingerprint", None))
    data, model = record.config["data"], record.config.get("model", {})
    fold = f"kfold {data.get('fold')} of {data.get('folds')}"
    kind, _, digest = str(model.get("weights")).partition(":")
    return (
        choices
        | {
            "dataset": record.dataset,
            "split": fold if data.get("split") == "kfold" else data.get("split"),
            "image_size": data.get("image_size"),
            "classes": data.get("classes", 0),  # old records have no such choice, nor the next one
            "train_per_class": data.get("train_per_class", 0),
            "backbone": model.get("backbone"),
            "options": json.dumps(record.config.get("options", {}), sort_keys=True),
            "files_fingerprint": "+".join(str(fingerprint)[:8] for fingerprint in fingerprints if fingerprint),
            "weights": record.labels.get("weights"),
            "digest": digest[:8] if kind == "sha256" else "",
            "dim": record.labels.get("dim"),
            "threads": scalar(record.environment.get("threads")),
        }
        | {name: getattr(record, name) for name in ("strategy", "seed", "kind", "device", "config_hash")}
        | {name: record.cost.get(name) for name in RECORDED_COSTS}
        | {name: value for name, value in record.metrics.items() if METRIC.fullmatch(name)}
    )


def plain_text(value: object) -> str:
    """A choice as people type it: whole numbers without a point."""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", str(value))


def protocols(table: Any, by: Sequence[str] = ()) -> list[tuple[str, pd.DataFrame]]:
    """Title and rows of each protocol, which the columns `by` do not make; equal titles name the images' files."""
    made = [*by, "files_fingerprint"] if "dataset" in by else by
    keys = [name for name in groups.PROTOCOL if name not in made]
    parts = [rows for _, rows in table.groupby(keys, sort=False, dropna=False)] if keys else [table]
    shared = [{name: rows[name].iloc[0] for name in keys} for rows in parts]
    titles = [_title({name: plain_text(value) for name, value in own.items() if not pd.isna(value)}) for own in shared]
    return [
        (f"{title}, files {own.get('files_fingerprint') or 'unknown'}" if titles.count(title) > 1 else title, rows)
        for title, own, rows in zip(titles, shared, parts, strict=True)
    ]


def _title(shared: Mapping[str, str]) -> str:
    """What the rows of a protocol share, in words."""
    forms = {"weights": "({})", "classes": "first {} classes", "image_size": "{} px"}
    forms |= {"train_per_class": "first {} training images of each class"}
    counts = {name: "" for name in ("classes", "train_per_class") if shared.get(name, "0") == "0"}
    words = {name: forms.get(name, "{}").format(value) for name, value in shared.items()} | counts
    network = " ".join(words[name] for name in ("backbone", "weights") if name in words)
    words |= {"backbone": network}
    parts = (words.get(name) for name in ("dataset", "split", "classes", "train_per_class", "backbone", "image_size"))
    return ", ".join(filter(None, parts)) or "all rows"


def choice_columns(rows: Any) -> list[str]:
    """The columns with choices of the configuration, beside the protocol's and those that a strategy's label shows."""
    others = (*groups.PROTOCOL, *LAST_COLUMNS, "strategy", "options", "seeds")
    return [name for name in map(str, rows) if name not in others and not groups.is_result(name)]


def readable(rows: Any, by: Sequence[str] = ()) -> pd.DataFrame:
    """What people compare in rows of one protocol, as text: every choice in which they differ, percentages (with
    intervals for Recall@1 and MAP@R), and costs; of grouped rows the columns `by` in place of choices."""
    if by:
        return _texts(rows, [*by, "configurations"])
    varying = [name for name in choice_columns(rows) if rows[name].map(str, na_action="ignore").nunique() > 1]
    cells = _texts(rows, ["strategy", "loss", "epochs", *varying, "seeds"])
    cells.loc[rows["images_seen"] == 0, ["loss", "epochs"]] = "-"  # nothing was trained
    return cells


def _texts(rows: Any, names: Sequence[str]) -> pd.DataFrame:
    """Columns of choices as they are, then metrics and costs as people read them, where a row has them."""
    cells = pd.DataFrame({name: rows[name].map(plain_text, na_action="ignore").astype(object) for name in names})
    for name in [*metric_names(rows), *(cost for cost in COSTS if cost in rows)]:
        shown, halves = column(name), [None] * len(rows)
        if name in ("recall_at_1", "map_at_r", "gain", "elsewhere") and f"{name}_ci95" in rows:
            halves = rows[f"{name}_ci95"]
        if shown.shown == "always" or rows[name].notna().any():
            cells[shown.title] = [shown.text(*pair) for pair in zip(rows[name].astype("float64"), halves, strict=True)]
    return cells.fillna("")


def distinct_labels(rows: Any) -> pd.Series:
    """A label for each row of a protocol: the strategy, and the first choices in which rows of one strategy differ."""
    labels = rows["strategy"].astype(str)
    choices = dict.fromkeys(["loss", "epochs", *choice_columns(rows), "device", "config_hash"])
    for name in (name for name in choices if rows[name].nunique() > 1):  # old records lack some choices
        form = {"loss": "{}", "epochs": "{} epochs", "device": "{}"}.get(name, f"{name} {{}}")
        values = [kind for _, kind in row_keys(rows)] if name == "device" else rows[name].map(plain_text)
        longer = labels + ", " + pd.Series(values, rows.index).map(form.format)
        is_shared = labels.duplicated(keep=False) & (longer.groupby(labels).transform("nunique") > 1)
        labels = labels.where(~is_shared, longer)
    return labels


def protocol_tables(table: Any, by: Sequence[str] = ()) -> list[TextTable]:
    """A readable table per protocol of a leaderboard, or of its rows grouped `by` columns."""
    marked = [(title, rows, [] if by else list(rows["significance"])) for title, rows in protocols(table, by)]
    return [TextTable(title, readable(rows, by), significance) for title, rows, significance in marked]


def reported_tables(datasets: Iterable[str]) -> list[TextTable]:
    """A table per data set of what papers report."""
    about = ["strategy", "backbone", "dim", "loss", "split"]
    return [
        TextTable(REPORTED.format(dataset), _texts(rows, about).assign(source=rows["reported"]))
        for dataset, rows in reported_rows(datasets).groupby("dataset", sort=False)
    ]


def render(table: Any, form: Format, by: Sequence[str] = (), reported: bool = True) -> str:
    """The table (grouped `by` columns) in one format: CSV and JSON with all columns, the others with a readable table
    per protocol. With `reported`, what papers report about its data sets follows, apart and marked."""
    datasets = list(table["dataset"].unique()) if reported and "dataset" in table else []
    if form == "csv":
        rows = reported_rows(datasets)
        both = pd.concat([table.astype(object), rows.astype(object)]) if len(rows) else table  # 3 stays 3, not 3.0
        return both.to_csv(index=False, lineterminator="\n")
    if form == "json":
        parts = {"measured": table, "reported": reported_rows(datasets)}
        lines = {name: json.loads(str(part.to_json(orient="records"))) for name, part in parts.items()}
        return json.dumps(lines, indent=1) + "\n"
    tables = protocol_tables(table, by) + reported_tables(datasets)
    legend = LEGEND_OF_GROUPS if by else LEGEND
    if form == "markdown":
        parts = [f"## {escape_markdown(part.title)}\n\n{part.to_markdown()}\n" for part in tables]
        return "\n".join([f"{legend}\n", *parts])
    if form == "latex":
        return "\n".join(part.to_latex() for part in tables)
    if form == "html":
        head = '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Leaderboard</title>\n'
        return f"{head}<p>{legend}</p>\n{''.join(part.to_html() for part in tables)}</html>\n"
    return to_terminal(tables) + (LEGEND_OF_TEXT if any(any(part.significance) for part in tables) else "")


def print_table(table: pd.DataFrame, by: Sequence[str] = ()) -> None:
    """Prints the readable tables, one per protocol; of processes that work together only the first does."""
    if is_main_process():
        empty = "no records yet: `make bench` makes the first ones\n"
        print(render(table, "text", by, reported=False) if len(table) else empty, end="")


def write_tables(results: ResultsFolder, records: Sequence[Record] | None = None) -> pd.DataFrame:
    """Builds the table of a results folder (its `records`) and writes ``leaderboard.csv`` and ``.md`` into it."""
    table = leaderboard(results.read_records() if records is None else records)
    if len(table):
        write_text(results.root / "leaderboard.csv", render(table, "csv"))
        head = "Built from `runs/` by `make leaderboard`; `leaderboard.csv` has every column."
        write_text(results.root / "leaderboard.md", f"{head}\n\n{render(table, 'markdown')}")
    return table
