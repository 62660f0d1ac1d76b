"""What many runs would take: the plan that ``--dry-run`` prints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from retrieval_bench.config import RunConfig, RuntimeConfig, flatten, unnest
from retrieval_bench.experiments.workers import Workers, duration
from retrieval_bench.identity import run_ids
from retrieval_bench.records import Record, ResultsFolder


def print_plan(configs: Sequence[RunConfig], runtime: RuntimeConfig, workers: Workers) -> None:
    """Prints the runs, which of them are recorded, and how long the rest will take."""
    runtime = workers.settle(runtime)
    jobs = dict(zip(run_ids(configs, runtime), configs, strict=True))
    width, records = workers.width(runtime.device), ResultsFolder(runtime.results).read_records()
    is_recorded = set() if runtime.force else {record.id for record in records}
    waiting: list[float | None] = []
    times = dict(zip(jobs, estimate(list(jobs.values()), records, runtime.device), strict=True))
    for run_id, config in jobs.items():
        seconds = times[run_id]
        plan = "unknown time" if seconds is None else f"about {duration(seconds)}"
        if run_id in is_recorded:
            plan = "recorded"
        else:
            waiting.append(seconds)
        print(f"{run_id}: {config.strategy_label}, {config.loss.loss}, seed {config.seed}: {plan}")
    known = [seconds for seconds in waiting if seconds is not None]
    print(f"{len(jobs)} runs: {len(jobs) - len(waiting)} recorded, {len(waiting)} to make, {width} at a time")
    if known:
        whole = duration(sum(known) / max(1, min(width, len(waiting))))
        print(f"about {whole} for {len(known)} of them, by the median seconds per epoch of like records")
    if len(known) < len(waiting):
        print(f"time unknown for {len(waiting) - len(known)}: no like record in {runtime.results}")


def estimate(configs: Sequence[RunConfig], records: Sequence[Record], kind: str) -> list[float | None]:
    """Seconds per run: the median over like records of their seconds per epoch, times the epochs; None where there is
    no like record.

    Alike are runs of one data set, image size, backbone and strategy on the same kind of device. Epochs count as at
    least one, since testing takes its time too.
    """
    rates: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for record in records:
        seconds, values = record.cost.get("total_seconds"), unnest(record.config)
        if seconds is not None and record.kind == kind:
            rates[_likeness(values)].append(seconds / max(1, values["train.epochs"]))
    like = [rates.get(_likeness(flatten(config))) for config in configs]
    return [
        median(several) * max(1, config.train.epochs) if several else None
        for several, config in zip(like, configs, strict=True)
    ]


def _likeness(values: Mapping[str, Any]) -> tuple[Any, ...]:
    backbone = values["model.backbone"].split(".")[0]
    return values["data.dataset"], values["data.image_size"], backbone, values["strategy"]
