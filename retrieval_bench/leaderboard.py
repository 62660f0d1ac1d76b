"""Records to one table: a row per configuration, mean and 95 % interval over its seeds, and which rows are not told apart from the best."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from retrieval_bench.errors import UserError, unknown
from retrieval_bench.evaluation.statistics import LEVEL, SEEDS, paired_t_test, t_factor
from retrieval_bench.records import FRACTION

PROTOCOL = ("dataset", "split", "classes", "backbone", "weights", "image_size", "files_fingerprint")
"""What all rows of one readable table share; rows that differ here are not ranked against each other."""
FIRST_COLUMNS = (*PROTOCOL[:5], "dim", "image_size", "loss", "strategy", "epochs", "seeds")
COST_COLUMNS = (
    "parameters",
    "trained_parameters",
    "macs",
    "images_seen",
    "train_seconds",
    "latency_ms",
    "peak_memory_mb",
)
MEASURED_TIMES = ("train_seconds", "latency_ms", "peak_memory_mb")
"""Costs that say something about one machine and number of threads only."""
LAST_COLUMNS = ("device", "threads", "config_hash")
METRIC = FRACTION


def build_table(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per configuration and kind of device (CPU or GPU), best Recall@1 first within a protocol.

    Columns: the first that people compare, ``seeds`` (how many), for each metric its mean over seeds as a fraction and ``<metric>_ci95``
    (half width of the t-interval; empty for one seed), mean costs, ``standing``, ``difference`` and ``p_value`` (:func:`standings`), then
    every other choice of the configuration, so that two rows never look alike. Seconds, latency and memory are empty where runs of a row
    were made on different machines or numbers of threads. Of several records of one configuration, device and seed the newest counts.
    """
    if not records:
        return pd.DataFrame()
    newest = sorted(records, key=lambda record: (str(record.get("finished", "")), str(record.get("id", ""))))
    several = _names_of_several_weights(records)
    runs: Any = pd.DataFrame(list({_key(record): _flat(record, several) for record in newest}.values()))
    metrics = sorted((name for name in map(str, runs) if METRIC.fullmatch(name)), key=_depth)
    rows = runs.groupby(["config_hash", "kind"], sort=False, dropna=False).ngroup()
    table = _means(runs, rows, metrics)
    order = [*PROTOCOL, metrics[0], "config_hash", "device"]
    table = table.sort_values(order, ascending=[name != metrics[0] for name in order])
    table[["standing", "difference", "p_value"]] = standings(table, runs, rows, metrics[0])
    front = [
        *FIRST_COLUMNS,
        *(column for name in metrics for column in (name, f"{name}_ci95")),
        "standing",
        "difference",
        "p_value",
        *COST_COLUMNS,
    ]
    choices = [name for name in table if name not in (*front, *LAST_COLUMNS, "seed", "kind")]
    return table.reindex(columns=[*front, *choices, *LAST_COLUMNS]).reset_index(drop=True)


def runs_by_row(records: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The runs behind each row of the table, by its configuration's hash and kind of device; seeds in order, of each the newest."""
    newest = {_key(record): record for record in sorted(records, key=lambda record: str(record.get("finished", "")))}
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for code, kind, seed in sorted(newest):
        found.setdefault((code, kind), []).append(newest[code, kind, seed])
    return found


def row_keys(table: Any) -> list[tuple[str, str]]:
    """The keys of the table's rows in :func:`runs_by_row`."""
    return [
        (code, device.split(":")[0])
        for code, device in zip(table["config_hash"], table["device"].map(str), strict=True)
    ]


def _depth(metric: str) -> int:
    """K of Recall@K; MAP@R and accuracy come after all of them."""
    found = METRIC.fullmatch(metric)
    return int(found[1]) if found and found[1] else 1 << 62


def _key(record: dict[str, Any]) -> tuple[str, str, int]:
    return record["config_hash"], _kind(record), record["seed"]


def _kind(record: dict[str, Any]) -> str:
    return _device(record).split(":")[0]


def _device(record: dict[str, Any]) -> str:
    return record["environment"].get("device") or "unknown"


def _names_of_several_weights(records: Sequence[dict[str, Any]]) -> set[str]:
    """File names that stand for weights of different content."""
    found: dict[str, set[str]] = {}
    for record in records:
        found.setdefault(record["labels"].get("weights"), set()).add(_digest(record))
    return {name for name, digests in found.items() if len(digests) > 1}


def _digest(record: dict[str, Any]) -> str:
    """The beginning of the digest of a weight file; nothing for weights that come by name."""
    kind, _, digest = str(record["config"].get("model", {}).get("weights")).partition(":")
    return digest[:8] if kind == "sha256" else ""


def _flat(record: dict[str, Any], several: Collection[str]) -> dict[str, Any]:
    """The record as one row of a table: choices, labels, costs, metrics, and where it was made; weights with their digest if their name is
    among `several`."""
    config, around = record["config"], record["environment"]
    row: dict[str, Any] = {}
    for section, values in config.items():
        if isinstance(values, dict) and section != "options":
            named = {name: value for name, value in values.items() if not METRIC.fullmatch(name)}
            row |= {
                name: json.dumps(value) if isinstance(value, list | dict) else value for name, value in named.items()
            }
    row |= {name: config["data"].get(name) for name in ("dataset", "split", "image_size")}
    row |= {"classes": config["data"].get("classes", 0)}  # records from before there was the choice have none
    row |= {"backbone": config.get("model", {}).get("backbone")}
    if row["split"] == "kfold":
        row["split"] = f"kfold {row.get('fold')} of {row.get('folds')}"
    row["options"] = json.dumps(config.get("options", {}), sort_keys=True)
    copies = (row.get("files_fingerprint"), row.pop("sides_fingerprint", None))
    row |= {"files_fingerprint": "+".join(str(copy)[:8] for copy in copies if copy)}
    row |= {name: record["labels"].get(name) for name in ("strategy", "weights", "dim")}
    if row["weights"] in several:
        row["weights"] = f"{row['weights']} {_digest(record)}".rstrip()
    row |= {name: record["cost"].get(name) for name in COST_COLUMNS}
    row |= {name: value for name, value in record["metrics"].items() if METRIC.fullmatch(name)}
    return row | {
        "seed": record["seed"],
        "kind": _kind(record),
        "device": _device(record),
        "threads": json.dumps(threads) if isinstance(threads := around.get("threads"), list | dict) else threads,
        "config_hash": record["config_hash"],
    }


def _means(runs: Any, rows: Any, metrics: Sequence[str]) -> Any:
    """A line per row of the table, in the order of their numbers `rows`: choices of its first run, means over its runs."""
    table = runs.groupby(rows).head(1).set_index(rows.drop_duplicates()).sort_index()
    table["seeds"] = rows.value_counts()
    values = runs[list(metrics)].astype("float64").groupby(rows)
    count, means, spread = values.count(), values.mean(), values.std()
    half = spread * count.map(lambda n: t_factor(int(n))) / np.sqrt(count)
    table[list(metrics)] = means.round(6)
    table[[f"{name}_ci95" for name in metrics]] = half.round(6).to_numpy()
    costs = runs[list(COST_COLUMNS)].astype("float64").groupby(rows).mean()
    machines = runs["device"].map(str) + " " + runs["threads"].map(str)
    several = machines.groupby(rows).nunique() > 1
    costs.loc[several, list(MEASURED_TIMES)] = np.nan
    table["threads"] = table["threads"].astype(
        object
    )  # of whole numbers pandas would make fractions to hold the empty ones
    table.loc[several, "threads"] = None
    table.loc[several, "device"] = (
        runs["device"].groupby(rows).agg(lambda found: "; ".join(sorted(set(found))))[several]
    )
    for name in COST_COLUMNS:
        decimals = {"train_seconds": 1, "latency_ms": 3}.get(name)
        table[name] = costs[name].round().astype("Int64") if decimals is None else costs[name].round(decimals)
    return table


def standings(table: Any, runs: Any, rows: Any, metric: str) -> pd.DataFrame:
    """Which rows are the best of their protocol and which are not told apart from it.

    The ``best`` is the highest mean (the first of equal ones) among rows with the metric of at least three seeds: fewer never rank. Every
    other row is compared with it by a paired t-test over the seeds that both have (three at least); from p = 0.05 on the row is a ``tie``.
    So is one that is above the best over those seeds, which may be fewer than the best's own. The p-values are those of single tests, not
    adjusted for their number: with the few seeds that people can afford, adjusted ones would call most rows ties.

    Args:
        table: a line per row.
        runs: a line per run, with ``seed``.
        rows: for each run the row that it belongs to.
        metric: what ranks.

    Returns:
        columns ``standing`` (``best``, ``tie`` or empty), and over the common seeds ``difference`` (mean of the row less that of the best)
        and ``p_value`` (both empty where nothing was tested), by the table's index.
    """
    seeds: dict[Any, dict[int, float]] = {}
    for row, seed, value in zip(rows, runs["seed"], runs[metric], strict=True):
        if value == value:
            seeds.setdefault(row, {})[seed] = value
    standing = dict.fromkeys(table.index, "")
    differences, p_values = dict.fromkeys(table.index, np.nan), dict.fromkeys(table.index, np.nan)
    groups: Any = table.groupby(list(PROTOCOL), sort=False, dropna=False)
    for _, group in groups:
        able = [row for row in group.index if len(seeds.get(row, ())) >= SEEDS]
        if not able:
            continue
        best = max(able, key=lambda row: group.loc[row, metric])
        standing[best] = "best"
        for row in group.index:
            if row != best and (found := _paired(seeds.get(row, {}), seeds[best])):
                differences[row], p_values[row] = (round(value, 6) for value in found)
                standing[row] = "tie" if found[1] >= LEVEL or found[0] >= 0 else ""
    return pd.DataFrame({"standing": standing, "difference": differences, "p_value": p_values})


def _paired(one: dict[int, float], other: dict[int, float]) -> tuple[float, float] | None:
    """Mean difference and p-value over the seeds that both have; None for too few."""
    common = sorted(set(one) & set(other))
    if len(common) < SEEDS:
        return None
    mean, _, p_value = paired_t_test([one[seed] for seed in common], [other[seed] for seed in common])
    return mean, p_value


def choose_rows(table: Any, wanted: Mapping[str, Collection[str]]) -> pd.DataFrame:
    """The rows whose columns have one of the wanted values, as text; a strategy is also found by its name without options.

    Raises:
        UserError: no such column, or a value that no row has.
    """
    kept = np.ones(len(table), dtype=bool)
    for column, values in wanted.items():
        if column not in table:
            raise unknown("column", column, map(str, table))
        have = table[column].map(plain_text)
        plain = have.str.replace(r"\([^)]*\)", "", regex=True) if column == "strategy" else have
        values = [_as_typed(value) for value in values]
        for value in values:
            if value not in set(have) | set(plain):
                raise unknown(column, value, sorted(set(have) | set(plain)))
        kept &= (have.isin(values) | plain.isin(values)).to_numpy()
    if not kept.any():
        asked = ", ".join(f"{name} {' or '.join(values)}" for name, values in wanted.items())
        raise UserError(f"no row has {asked}, all together")
    return table[kept].reset_index(drop=True)


def plain_text(value: Any) -> str:
    """A choice as people type it: whole numbers without a point."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _as_typed(text: str) -> str:
    """A value that somebody typed, as :func:`plain_text` writes it: ``3.0`` is ``3``."""
    try:
        return plain_text(float(text)) if "." in text else text
    except ValueError:
        return text


def group_rows(table: Any, by: Sequence[str]) -> pd.DataFrame:
    """One row per value of the columns `by`, within the protocol columns that are not among them: means over configurations.

    Columns: the protocol's, `by`, ``configurations`` (how many), and for each metric the mean of the configurations' means with half of
    the 95 % t-interval over configurations, and mean costs. Rows best first.
    """
    numbers = (*COST_COLUMNS, "standing", "difference", "p_value")
    choices = [
        name for name in map(str, table) if name not in numbers and not METRIC.fullmatch(name.removesuffix("_ci95"))
    ]
    by = list(dict.fromkeys(by))
    for column in by:
        if column not in choices:
            raise unknown("column", column, choices)
    metrics = [name for name in map(str, table) if METRIC.fullmatch(name)]
    keys = [*(name for name in PROTOCOL if name not in by), *by]
    grouped: Any = table.groupby(keys, sort=False, dropna=False)
    count, means, spread = grouped[metrics].count(), grouped[metrics].mean(), grouped[metrics].std()
    half = (spread * count.map(lambda n: t_factor(int(n))) / np.sqrt(count)).add_suffix("_ci95")
    costs = grouped[list(COST_COLUMNS)].mean()
    costs.loc[(grouped[["device", "threads"]].nunique() > 1).any(axis=1), list(MEASURED_TIMES)] = np.nan
    out: Any = pd.concat(
        [grouped.size().rename("configurations"), means.round(6), half.round(6), costs], axis=1
    ).reset_index()
    order = [*(name for name in PROTOCOL if name not in by), metrics[0], *by]
    return out.sort_values(order, ascending=[name != metrics[0] for name in order], ignore_index=True, key=_sortable)


def _sortable(column: Any) -> Any:
    """The values, or their text where texts and numbers are mixed."""
    return column.map(str) if column.dtype == object else column
