"""Rows of a table in groups: means, intervals and costs, which of them do not differ from the best, and how they are
sorted. The leaderboard groups runs into rows with it, and rows by columns."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from retrieval_bench.columns import COLUMNS, METRIC, RECORDED_COSTS, metric_names
from retrieval_bench.errors import unknown
from retrieval_bench.evaluation.statistics import LEVEL, SEEDS, paired_t_test
from retrieval_bench.records import Record
from retrieval_bench.sections import DataConfig, EvalConfig, ModelConfig
from retrieval_bench.strategy_list import frozen_strategies

PROTOCOL = ("dataset", "split", "classes", "backbone", "weights", "image_size", "train_per_class", "files_fingerprint")
"""What all rows of one readable table share; rows that differ here are not ranked against each other."""
MEASURED = {"data": asdict(DataConfig()), "model": asdict(ModelConfig()), "evaluation": asdict(EvalConfig())}
"""The parts of a configuration that say what is measured, with the defaults of fields that older records lack."""
SIGNIFICANCE = ("significance", "difference", "p_value")
MACHINE_COSTS = [name for name in RECORDED_COSTS if COLUMNS[name].of_machine]


def summarize(grouped: Any, metrics: Sequence[str]) -> pd.DataFrame:
    """Per group of rows its ``size``, means of metrics with half of their 95 % t-intervals (``<metric>_ci95``), and
    mean costs, empty where they depend on the machine and there are several."""
    values = grouped[[*metrics]]
    count = values.count()
    half = values.std() * special.stdtrit(count - 1, 0.975) / np.sqrt(count)
    costs = grouped[[*RECORDED_COSTS]].mean()
    costs.loc[on_several_machines(grouped), MACHINE_COSTS] = np.nan
    intervals = half.round(6).add_suffix("_ci95")
    return pd.concat([grouped.size().rename("size"), values.mean().round(6), intervals, costs], axis=1)


def on_several_machines(grouped: Any) -> pd.Series:
    return (grouped[["device", "threads"]].nunique(dropna=False) > 1).any(axis=1)


def sort_rows(table: Any, order: Sequence[str]) -> Any:
    """The table by some columns, of which metrics fall."""

    def sortable(values: pd.Series) -> pd.Series:
        return values.map(str) if values.dtype == object else values  # where texts and numbers are mixed

    return table.sort_values([*order], ascending=[not METRIC.fullmatch(name) for name in order], key=sortable)


def compare_with_best(table: Any, runs: Mapping[Any, Sequence[Record]], metric: str) -> pd.DataFrame:
    """Which rows of a table are the best of their protocol by a metric, and which are not significantly different.

    The ``best`` is the highest mean (the first of equal ones) among rows with the metric of at least three seeds:
    fewer never rank. Every other row is compared with it by a paired t-test over the seeds that both have (at least
    three); from p = 0.05 on the row is a ``tie``. So is one that is above the best over those seeds, which may be fewer
    than the best's own. The p-values are those of single tests, not adjusted for their number: with the few seeds that
    people can afford, adjusted ones would call most rows ties. The keys of `runs` are the table's index.

    Returns:
        columns ``significance`` (``best``, ``tie`` or empty), and over the common seeds ``difference`` (mean of the row
        less that of the best) and ``p_value`` (both empty where nothing was tested), by the table's index.
    """
    values = {
        row: {run.seed: run.metrics[metric] for run in several if run.metrics.get(metric) is not None}
        for row, several in runs.items()
    }
    compared: dict[Any, Any] = dict.fromkeys(table.index, ("", np.nan, np.nan))
    for _, group in table.groupby([*PROTOCOL], sort=False, dropna=False):
        ranked = [row for row in group.index if len(values[row]) >= SEEDS]
        if not ranked:
            continue
        best = max(ranked, key=dict(zip(group.index, group[metric], strict=True)).__getitem__)
        compared[best] = ("best", np.nan, np.nan)
        for row in group.index.drop(best):
            common = sorted(values[row].keys() & values[best].keys())
            if len(common) >= SEEDS:
                pairs = ([values[side][seed] for seed in common] for side in (row, best))
                difference, _, p_value = paired_t_test(*pairs)
                is_tie = p_value >= LEVEL or difference >= 0
                compared[row] = ("tie" if is_tie else "", round(difference, 6), round(p_value, 6))
    return pd.DataFrame([*compared.values()], index=table.index, columns=[*SIGNIFICANCE])


def measured_elsewhere(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """What runs that were measured on other data sets have there, by their ids.

    Returns:
        ``elsewhere_on_<set>``, Recall@1 on each set; and where frozen features were measured with the same data, model
        and evaluation ``elsewhere``, the mean over the sets of Recall@1 less theirs, and ``gain``, the same on the own
        test classes. Theirs is the mean over seeds, of several frozen rows (embedding layers that were trained
        differently) that with the highest mean elsewhere.
    """
    found = {
        run.id: {f"elsewhere_on_{name}": metrics["recall_at_1"] for name, metrics in run.elsewhere.items()}
        for run in records
        if run.elsewhere
    }
    frozen: dict[str, dict[Any, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    pairs: dict[str, tuple[str, tuple[float, float]]] = {}
    for run in records:
        if run.id in found and run.metrics.get("recall_at_1") is not None:
            parts = [{**usual, **run.config.get(name, {})} for name, usual in MEASURED.items()]
            protocol = json.dumps(parts, sort_keys=True)
            pairs[run.id] = protocol, (fmean(found[run.id].values()), run.metrics["recall_at_1"])
            if frozen_strategies().issuperset(run.config["strategy"].split("+")):
                frozen[protocol][run.config_hash, run.kind].append(pairs[run.id][1])
    for run_id, (protocol, (away, home)) in pairs.items():
        if protocol in frozen:
            means = [tuple(map(fmean, zip(*runs, strict=True))) for runs in frozen[protocol].values()]
            frozen_away, frozen_home = max(means)
            found[run_id] |= {"gain": home - frozen_home, "elsewhere": away - frozen_away}
    return found


def group_rows(table: Any, by: Sequence[str]) -> pd.DataFrame:
    """One row per value of the columns `by` within each protocol, best first: ``configurations`` (how many), for each
    metric the mean of their means with half of the 95 % t-interval over configurations, and mean costs."""
    by = list(dict.fromkeys(by))
    for name in by:
        if name not in table or is_result(name):
            raise unknown("column", name, [other for other in map(str, table) if not is_result(other)])
    metrics, protocol = metric_names(table), [name for name in PROTOCOL if name not in by]
    groups = summarize(table.groupby([*protocol, *by], sort=False, dropna=False), metrics).reset_index()
    order = [*protocol, metrics[0], *by]
    return sort_rows(groups.rename(columns={"size": "configurations"}), order).reset_index(drop=True)


def is_result(name: str) -> bool:
    is_metric = METRIC.fullmatch(name.removesuffix("_ci95")) is not None
    return is_metric or name in RECORDED_COSTS or name in SIGNIFICANCE
