"""Records to one table: a row per configuration, mean and 95 % interval over its seeds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from retrieval_bench.files import write_text
from retrieval_bench.records import read_records

CONFIG_COLUMNS = {
    "dataset": ("data", "dataset"),
    "protocol": ("data", "split"),
    "backbone": ("model", "backbone"),
    "pooling": ("model", "pooling"),
    "image_size": ("data", "image_size"),
    "preprocessing": ("data", "preprocessing"),
    "loss": ("loss", "loss"),
    "epochs": ("train", "epochs"),
    "batch_size": ("train", "batch_size"),
    "lr": ("train", "lr"),
}
FIRST_COLUMNS = ["dataset", "protocol", "backbone", "weights", "dim", "loss", "strategy", "seeds"]
COST_COLUMNS = ("parameters", "trained_parameters", "macs", "images_seen", "train_seconds", "peak_memory_mb")
LABEL_COLUMNS = ("strategy", "weights", "dim")
PROTOCOL = ("dataset", "protocol", "backbone", "weights", "image_size", "loss", "epochs")
METRIC = re.compile(r"recall_at_(\d+)")


def build_table(records: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per configuration hash and device, best Recall@1 first within a data set.

    Columns: the choices that move the number, ``seeds`` (how many), for each metric its mean over seeds as a fraction and
    ``<metric>_ci95`` (half width of the t-interval; empty for one seed), mean costs, ``device`` and ``config_hash``.
    """
    if not records:
        return pd.DataFrame()
    runs = pd.DataFrame([_flat(record) for record in records])
    metrics = sorted((name for name in runs if METRIC.fullmatch(str(name))), key=lambda name: int(str(name).rsplit("_", 1)[1]))
    rows = []
    for _, group in runs.groupby(["config_hash", "device"], sort=False):
        row = {name: group[name].iloc[0] for name in (*CONFIG_COLUMNS, *LABEL_COLUMNS)}
        row["seeds"] = group["seed"].nunique()
        for name in metrics:
            row[name] = group[name].mean()
            row[f"{name}_ci95"] = half_width(group[name])
        row |= {name: group[name].mean() for name in COST_COLUMNS}
        row |= {name: group[name].iloc[0] for name in ("device", "config_hash")}
        rows.append(row)
    table = pd.DataFrame(rows)
    table = table.reindex(columns=[*FIRST_COLUMNS, *table.columns.difference(FIRST_COLUMNS, sort=False)])
    table[metrics + [f"{name}_ci95" for name in metrics]] = table[metrics + [f"{name}_ci95" for name in metrics]].round(6)
    whole = [name for name in COST_COLUMNS if name != "train_seconds"]
    table[whole] = table[whole].round().astype("int64")
    table["train_seconds"] = table["train_seconds"].round(1)
    order = ["dataset", "protocol", "backbone", "weights", metrics[0], "config_hash", "device"]
    return table.sort_values(order, ascending=[True, True, True, True, False, True, True], ignore_index=True)


def half_width(values: Any) -> float:
    """Half width of the 95 % t-interval of the mean; NaN for a single value, which shows no spread."""
    count = values.count()
    if count < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, count - 1) * values.sem())


def write_tables(results: Path) -> pd.DataFrame:
    """Builds the table from ``<results>/runs`` and writes ``leaderboard.csv`` and ``leaderboard.md`` beside them."""
    table = build_table(list(read_records(results)))
    if len(table):
        write_text(results / "leaderboard.csv", table.to_csv(index=False))
        write_text(results / "leaderboard.md", to_markdown(table))
    return table


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The columns that people compare, as text: percentages (Recall@1 with its interval), millions, and seconds."""
    shown = pd.DataFrame({name: table[name].astype(str) for name in (*PROTOCOL, "strategy", "seeds")})
    for name in (str(name) for name in table if METRIC.fullmatch(str(name))):
        text = (100 * table[name]).map("{:.2f}".format)
        if name == "recall_at_1":
            text += table[f"{name}_ci95"].map(lambda half: f" ± {100 * half:.2f}" if half == half else "")
        shown["R@" + name.rsplit("_", 1)[1]] = text.where(table[name].notna(), "")
    shown["params"] = (table["parameters"] / 1e6).map("{:.2f} M".format)
    shown["MACs"] = (table["macs"] / 1e6).map("{:.0f} M".format)
    shown["images seen"] = table["images_seen"].map("{:,}".format)
    shown["train s"] = table["train_seconds"].map("{:.0f}".format)
    return shown


def to_markdown(table: pd.DataFrame) -> str:
    """The readable table in Markdown."""
    shown = readable(table)
    lines = [list(shown.columns), ["---"] * len(shown.columns), *shown.to_numpy().tolist()]
    return (
        "Recall@K in percent, mean over seeds ± half of the 95 % t-interval; one row per configuration and device.\n"
        "Built from `runs/` by `make leaderboard`; `leaderboard.csv` has every column.\n\n"
        + "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
        + "\n"
    )


def print_table(table: pd.DataFrame) -> None:
    """Prints the readable table; what is the same in every row stands in the line above it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.width = max(console.width, 110)
    if not len(table):
        console.print("no records yet: `make bench` makes the first ones")
        return
    shown = readable(table)
    constant = [name for name in PROTOCOL if len(set(shown[name])) == 1]
    console.print(", ".join(f"{name} {shown[name].iloc[0]}" for name in constant))
    drawn = Table(box=box.SIMPLE_HEAD)
    for name in shown.columns.difference(constant, sort=False):
        drawn.add_column(str(name), justify="left" if name in PROTOCOL or name == "strategy" else "right", no_wrap=True)
    for row in shown.drop(columns=constant).to_numpy().tolist():
        drawn.add_row(*row)
    console.print(drawn)


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    config = record["config"]
    row = {name: config.get(section, {}).get(key) for name, (section, key) in CONFIG_COLUMNS.items()}
    row |= {name: record["cost"].get(name) for name in COST_COLUMNS}
    row |= {name: value for name, value in record["metrics"].items() if METRIC.fullmatch(name)}
    return row | {
        **{name: record["labels"].get(name) for name in LABEL_COLUMNS},
        "seed": record["seed"],
        "device": record["environment"].get("device"),
        "config_hash": record["config_hash"],
    }
