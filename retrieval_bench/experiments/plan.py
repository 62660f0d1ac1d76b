"""What many runs would take: the plan that ``--dry-run`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from retrieval_bench.config import RunConfig, RuntimeConfig, flag, flag_words, flat_values, flatten
from retrieval_bench.data.download import no_downloads
from retrieval_bench.errors import NotFetched
from retrieval_bench.experiments.estimate import estimate
from retrieval_bench.experiments.experiment import Row, recorded_hashes
from retrieval_bench.experiments.rehearsal import able_runs
from retrieval_bench.experiments.workers import Workers
from retrieval_bench.identity import run_ids
from retrieval_bench.progress import duration
from retrieval_bench.records import Record, ResultsFolder


def print_plan(rows: Sequence[Row], configs: Sequence[RunConfig], runtime: RuntimeConfig, workers: Workers) -> None:
    """Prints the runs by what differs between them, which of them are recorded, and how long the rest will take; once
    the rows have passed all checks. Nothing is downloaded: without the data, its checks are left out with a line."""
    runtime = workers.settle(runtime)
    width, records = workers.width(runtime.device), ResultsFolder(runtime.results).read_records()
    with no_downloads():
        try:
            configs = able_runs(rows, configs, runtime, downloads=False)
            ids = list(run_ids(configs, runtime))
        except NotFetched as error:
            print(f"{error}: a record counts by its choices, and what needs the images is checked later")
            ids = recorded_ids(rows, configs, records, runtime.device)
    is_recorded = set() if runtime.force else {record.id for record in records}
    waiting: list[float | None] = []
    times = estimate(configs, records, runtime.device)
    for run_id, words, seconds in zip(ids, differences(configs), times, strict=True):
        plan = "unknown time" if seconds is None else f"about {duration(seconds)}"
        if run_id in is_recorded:
            plan = f"recorded ({run_id})"
        else:
            waiting.append(seconds)
        print(f"{words}: {plan}")
    known = [seconds for seconds in waiting if seconds is not None]
    print(f"{len(configs)} runs: {len(configs) - len(waiting)} recorded, {len(waiting)} to make, {width} at a time")
    if known:
        whole = duration(sum(known) / max(1, min(width, len(waiting))))
        print(f"about {whole} for {len(known)} of them, by the median seconds per epoch of like records")
    if len(known) < len(waiting):
        print(f"time unknown for {len(waiting) - len(known)}: no like record in {runtime.results}")


def differences(configs: Sequence[RunConfig]) -> list[str]:
    """The flags of each run whose values are not the same in all; of a single one its seed."""
    flats, used = [dict(flat_values(config)) for config in configs], [flatten(config) for config in configs]
    names = [name for name in flats[0] if len({str(flat[name]) for flat in flats}) > 1] or ["seed"]
    return [
        " ".join(word for name in names if name in own for word in flag_words(flag(name), flat[name]))
        for flat, own in zip(flats, used, strict=True)
    ]


def recorded_ids(rows: Sequence[Row], configs: Sequence[RunConfig], records: Sequence[Record], kind: str) -> list[str]:
    """The ids of the runs on this kind of device that have a record by their choices alone; empty for others."""
    hashes = recorded_hashes(rows, records)
    by_config = {replace(row.config, seed=0): hashes[row.name] for row in rows}
    known = {(record.config_hash, record.seed): record.id for record in records if record.kind == kind}
    return [known.get((by_config[replace(config, seed=0)], config.seed), "") for config in configs]
