"""Records to one table: a row per configuration, mean and 95 % interval over its seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from retrieval_bench.evaluation.statistics import t_interval
from retrieval_bench.files import write_text
from retrieval_bench.records import read_records

FIRST_COLUMNS = ("dataset", "split", "classes", "backbone", "weights", "dim", "image_size", "loss", "strategy", "epochs", "seeds")
COST_COLUMNS = ("parameters", "trained_parameters", "macs", "images_seen", "train_seconds", "peak_memory_mb")
LAST_COLUMNS = ("device", "threads", "config_hash")
METRIC = re.compile(r"recall_at_(\d+)|map_at_r|accuracy")


def build_table(records: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per configuration and kind of device (CPU or GPU), best Recall@1 first within a protocol.

    Columns: the first that people compare, ``seeds`` (how many), for each metric its mean over seeds as a fraction and ``<metric>_ci95``
    (half width of the t-interval; empty for one seed), mean costs, then every other choice of the configuration, so that two rows never
    look alike. Seconds and memory are empty where runs of a row were made on different machines or numbers of threads. Of several
    records of one configuration, device and seed the newest counts.
    """
    if not records:
        return pd.DataFrame()
    newest = sorted(records, key=lambda record: str(record.get("finished", "")))
    runs = pd.DataFrame(list({_key(record): _flat(record) for record in newest}.values()))
    metrics = sorted((name for name in map(str, runs) if METRIC.fullmatch(name)), key=_depth)
    table = pd.DataFrame([_summary(group, metrics) for _, group in runs.groupby(["config_hash", "kind"], sort=False, dropna=False)])
    table = table.drop(columns=["seed", "kind"])
    for name in COST_COLUMNS:
        table[name] = table[name].round(1) if name == "train_seconds" else table[name].round().astype("Int64")
    front = [*FIRST_COLUMNS, *(column for name in metrics for column in (name, f"{name}_ci95")), *COST_COLUMNS]
    choices = [name for name in table if name not in (*front, *LAST_COLUMNS)]
    table = table.reindex(columns=[*front, *choices, *LAST_COLUMNS])
    order = [*PROTOCOL, metrics[0], "config_hash"]
    return table.sort_values(order, ascending=[name != metrics[0] for name in order], ignore_index=True)


def _depth(metric: str) -> int:
    """K of Recall@K; MAP@R and accuracy come after all of them."""
    found = METRIC.fullmatch(metric)
    return int(found[1]) if found and found[1] else 1 << 62


def _key(record: dict[str, Any]) -> tuple[str, str, int]:
    return record["config_hash"], _kind(record), record["seed"]


def _kind(record: dict[str, Any]) -> str:
    return str(record["environment"].get("device", "unknown")).split(":")[0]


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """The record as one row of a table: choices, labels, costs, metrics, and where it was made."""
    config, around = record["config"], record["environment"]
    row: dict[str, Any] = {}
    for section, values in config.items():
        if isinstance(values, dict) and section != "options":
            row |= {name: json.dumps(value) if isinstance(value, list) else value for name, value in values.items()}
    row.setdefault("classes", 0)  # records from before there was the choice
    if row.get("split") == "kfold":
        row["split"] = f"kfold {row['fold']} of {row['folds']}"
    row["options"] = json.dumps(config.get("options", {}), sort_keys=True)
    row |= {"files_fingerprint": str(row.get("files_fingerprint", ""))[:8]}
    row |= {name: record["labels"].get(name) for name in ("strategy", "weights", "dim")}
    row |= {name: record["cost"].get(name) for name in COST_COLUMNS}
    row |= {name: value for name, value in record["metrics"].items() if METRIC.fullmatch(name)}
    return row | {
        "seed": record["seed"],
        "kind": _kind(record),
        "device": around.get("device", "unknown"),
        "threads": around.get("threads"),
        "config_hash": record["config_hash"],
    }


def _summary(group: Any, metrics: list[str]) -> dict[str, Any]:
    """One row for the runs of one configuration on one kind of device."""
    row: dict[str, Any] = dict(group.iloc[0])
    row["seeds"] = len(group)
    for name in metrics:
        row[name] = round(float(group[name].mean()), 6)
        row[f"{name}_ci95"] = round(half_width(group[name]), 6)
    row |= {name: group[name].astype("float64").mean() for name in COST_COLUMNS}
    if len(group[["device", "threads"]].drop_duplicates()) > 1:
        row |= {"train_seconds": float("nan"), "peak_memory_mb": float("nan"), "threads": None}
        row["device"] = "; ".join(sorted(set(group["device"])))
    return row


PROTOCOL = ("dataset", "split", "classes", "backbone", "weights", "image_size")
"""What all rows of one readable table share; rows that differ here are not ranked against each other."""


def half_width(values: Any) -> float:
    """Half width of the 95 % t-interval of the mean; NaN for a single value, which shows no spread."""
    return t_interval(values.dropna().to_numpy())[1]


def write_tables(results: Path) -> pd.DataFrame:
    """Builds the table from ``<results>/runs`` and writes ``leaderboard.csv`` and ``leaderboard.md`` beside them."""
    table = build_table(list(read_records(results)))
    if len(table):
        write_text(results / "leaderboard.csv", table.to_csv(index=False))
        write_text(results / "leaderboard.md", to_markdown(table))
    return table


def by_protocol(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each protocol, as :func:`readable` shows them, under its name."""
    groups: Any = table.groupby(list(PROTOCOL), sort=False, dropna=False)
    for (dataset, split, classes, backbone, weights, image_size), group in groups:
        part = f", first {classes:.0f} classes" if classes and classes == classes else ""
        name = f"{dataset}, {split}{part}, {backbone} ({weights}), {image_size} px"
        yield name, readable(group)


def readable(table: Any) -> pd.DataFrame:
    """What people compare in rows of one protocol, as text: every choice that differs between them, percentages (Recall@1 with its
    interval), and costs. Options need no column of their own, since the strategy's label shows those that differ from their defaults."""
    hidden = {*PROTOCOL, *COST_COLUMNS, *LAST_COLUMNS, "dim", "strategy", "seeds", "options"}
    choices = [name for name in map(str, table) if name not in hidden and not METRIC.fullmatch(name.removesuffix("_ci95"))]
    varying = [name for name in choices if table[name].astype(str).nunique() > 1]
    shown = pd.DataFrame({name: table[name].astype(str) for name in dict.fromkeys(["strategy", "loss", "epochs", *varying, "seeds"])})
    shown.loc[table["images_seen"] == 0, ["loss", "epochs"]] = "-"  # nothing was trained
    for name in (str(name) for name in table if METRIC.fullmatch(str(name)) and table[name].notna().any()):
        text = (100 * table[name]).map("{:.2f}".format)
        if name == "recall_at_1":
            text += table[f"{name}_ci95"].map(lambda half: f" ± {100 * half:.2f}" if half == half else "")
        shown[metric_title(name)] = text.where(table[name].notna(), "")
    shown["params"] = _scaled(table["parameters"], 1e6, "{:.2f} M")
    shown["MACs"] = _scaled(table["macs"], 1e6, "{:.0f} M")
    shown["images seen"] = _scaled(table["images_seen"], 1, "{:,.0f}")
    shown["train s"] = _scaled(table["train_seconds"], 1, "{:.0f}")
    return shown


def metric_title(name: str) -> str:
    """``recall_at_1`` as people write it: R@1."""
    return {"map_at_r": "MAP@R", "accuracy": "top-1"}.get(name) or "R@" + name.rsplit("_", 1)[1]


def _scaled(values: Any, unit: float, form: str) -> Any:
    return values.map(lambda value: "" if pd.isna(value) else form.format(value / unit))


def to_markdown(table: pd.DataFrame) -> str:
    """The readable tables in Markdown, one per protocol."""
    parts = [
        "Recall@K and MAP@R in percent, mean over seeds ± half of the 95 % t-interval; one row per configuration and kind of device.\n"
        "Built from `runs/` by `make leaderboard`; `leaderboard.csv` has every column.\n"
    ]
    for name, shown in by_protocol(table):
        parts.append("\n".join([f"## {name}", "", *markdown_rows(shown), ""]))
    return "\n".join(parts)


def markdown_rows(shown: pd.DataFrame) -> list[str]:
    """A table of text as the lines of a Markdown table."""
    lines = [list(shown.columns), ["---"] * len(shown.columns), *shown.to_numpy().tolist()]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]


def print_table(table: pd.DataFrame) -> None:
    """Prints the readable tables, one per protocol."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.width = max(console.width, 120)
    if not len(table):
        console.print("no records yet: `make bench` makes the first ones")
        return
    for name, shown in by_protocol(table):
        console.print(name, highlight=False)
        drawn = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
        for column in map(str, shown):
            drawn.add_column(column, justify="left" if column in ("strategy", "loss") else "right", no_wrap=True)
        for row in shown.to_numpy().tolist():
            drawn.add_row(*row)
        console.print(drawn)
