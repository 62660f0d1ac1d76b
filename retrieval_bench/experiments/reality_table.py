"""The table of a Reality Check: measured rows in order, with tests, and what the search of each cost and chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from retrieval_bench.evaluation.statistics import LEVEL, SEEDS, holm, paired_t_test
from retrieval_bench.experiments.study import Record, Row, measured_table
from retrieval_bench.leaderboard import METRIC
from retrieval_bench.tables import metric_title, percent, scaled
from retrieval_bench.tune.journal import Search
from retrieval_bench.tune.spaces import shown

FIRST = "recall_at_1"
"""What decides the rank."""


def check_table(rows: Sequence[Row], searches: Sequence[Search], records: dict[str, list[Record]], trials: int) -> Any:
    """A pandas table with a line per strategy, best first, numbers only: what the CSV holds.

    The columns of :func:`retrieval_bench.experiments.study.measured_table` but for quoted values, and: ``rank`` by the mean of Recall@1;
    ``chosen`` (values, in words); ``validation`` (the objective of the chosen trial, a fraction); ``trials`` and ``failed_trials``;
    ``search_images_seen``; ``against`` (the best row), ``difference`` to it (mean over the seeds that both have) and its ``_ci95``;
    ``p_value`` of the paired t-test over seeds, ``p_holm`` corrected over the rows; ``tied``, whether the row cannot be told apart from
    the best one (empty where fewer than three seeds leave that open).
    """
    first = measured_table(rows, records)
    order = first.sort_values(FIRST, ascending=False, na_position="last", kind="stable").index
    rows = [rows[place] for place in order]
    best = rows[0].name
    table = measured_table([replace(entry, against="" if entry.name == best else best) for entry in rows], records)
    table = table[
        [name for name in table if not name.endswith("_quoted") and name not in ("sd_over_draws", "per_1000_images")]
    ]
    by_name = {entry.config.strategy: entry for entry in searches}
    effort = [_effort(by_name[entry.name], trials) for entry in rows]
    values = {record["seed"]: record["metrics"][FIRST] for record in records.get(best, [])}
    p_values = [float("nan") if entry.name == best else _p_value(records.get(entry.name, []), values) for entry in rows]
    ranked = table[FIRST].rank(ascending=False, method="min").astype("Int64")
    table.insert(0, "rank", ranked)
    table = table.assign(
        **{name: [line[name] for line in effort] for name in effort[0]}, p_value=p_values, p_holm=holm(p_values)
    )
    return table.assign(tied=[bool(p >= LEVEL) if p == p else None for p in table["p_holm"]])


def _effort(entry: Search, trials: int) -> dict[str, Any]:
    """What a search cost, and what it chose."""
    best, made = entry.best(trials), entry.trials
    return {
        "chosen": shown(best.values) if best else "",
        "validation": best.metrics[entry.objective] if best else None,
        "trials": len(made),
        "failed_trials": sum(not trial.metrics for trial in made),
        "search_images_seen": entry.images_seen,
    }


def _p_value(found: list[Record], best: dict[int, float]) -> float:
    pairs = [(record["metrics"][FIRST], best[record["seed"]]) for record in found if record["seed"] in best]
    return (
        paired_t_test([one for one, _ in pairs], [other for _, other in pairs])[2]
        if len(pairs) >= SEEDS
        else float("nan")
    )


def check_for_people(table: Any, objective: str) -> Any:
    """The same as text: percentages, ``=`` behind ranks that cannot be told apart from the first, ``?`` where seeds are too few."""
    import pandas as pd

    columns = {name: table[name].tolist() for name in table}
    marks = {True: " =", False: "", None: " ?"}  # the first row is compared with nothing
    ranks = [
        "" if rank is pd.NA else f"{rank}{marks[tied] if row else ''}"
        for row, (rank, tied) in enumerate(zip(columns["rank"], columns["tied"], strict=True))
    ]
    text = pd.DataFrame({"rank": ranks, "strategy": table["row"], "chosen": table["chosen"]})
    for name in filter(METRIC.fullmatch, table):
        text[metric_title(name)] = [percent(*pair) for pair in zip(columns[name], columns[f"{name}_ci95"], strict=True)]
    pairs = zip(columns["difference"], columns["difference_ci95"], strict=True)
    text["R@1 difference"] = [percent(*pair, sign="+") for pair in pairs]
    text["p (Holm)"] = [scaled(value, 1, "{:.3f}") for value in columns["p_holm"]]
    text[f"validation {metric_title(objective)}"] = [percent(value) for value in columns["validation"]]
    failed = zip(columns["trials"], columns["failed_trials"], strict=True)
    text["trials"] = [f"{made}{f' ({lost} failed)' if lost else ''}" for made, lost in failed]
    text["images in search"] = [scaled(value, 1, "{:,.0f}") for value in columns["search_images_seen"]]
    text["params"] = [scaled(value, 1e6, "{:.2f} M") for value in columns["parameters"]]
    text["MACs"] = [scaled(value, 1e9, "{:.3f} G") for value in columns["macs"]]
    text["images seen"] = [scaled(value, 1, "{:,.0f}") for value in columns["images_seen"]]
    text["train s"] = [scaled(value, 1, "{:.0f}") for value in columns["train_seconds"]]
    return text.assign(seeds=table["seeds"].astype(str))
