"""Many runs on this machine or on a Ray cluster: what makes them, what they leave, and what the user sees.

The results folder is the queue: a run that is recorded is passed over, one whose lock another driver holds is looked at
again after the others, and one that fails is retried a bounded number of times. So several drivers on one results
folder make every run once, and a driver that comes after one that was killed goes on where that one was.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from retrieval_bench.config import RunConfig, RuntimeConfig, flatten
from retrieval_bench.device import resolve_device
from retrieval_bench.errors import UserError, first_line
from retrieval_bench.experiments import ray_tasks
from retrieval_bench.experiments.estimate import estimate
from retrieval_bench.experiments.processes import Processes
from retrieval_bench.experiments.ray_tasks import RayTasks
from retrieval_bench.experiments.worker import Outcome, make_run
from retrieval_bench.files import atomic_path, check_writable
from retrieval_bench.identity import run_ids
from retrieval_bench.progress import duration, followed_by, logger, track
from retrieval_bench.records import Record, ResultsFolder, read_record
from retrieval_bench.run import recorded
from retrieval_bench.validation import validate

POLL = 0.3
"""Seconds between looks at runs that other drivers make."""
Jobs = Mapping[str, dict[str, Any]]
"""Flat configurations by the ids of their runs."""


@dataclass(frozen=True)
class Workers:
    """What makes the runs."""

    engine: Literal["local", "ray"] = "local"
    """local: processes on this machine; ray: a cluster, or a Ray of its own on this machine
    (pip install "retrieval_bench[ray]")"""
    jobs: int = 0
    """local: runs at a time, which share the processor's threads; 0 for one per GPU, or one on a CPU"""
    cpus_per_run: float = 1
    """ray: processor cores, and threads, of each run"""
    gpus_per_run: float = 0
    """ray: GPUs of each run; 0.5 puts two runs on one"""
    ray_address: str = ""
    """ray: the cluster to join, such as auto on its head node or HOST:6379"""
    collect: bool = False
    """ray: the results folder is not shared by the machines: records and kept embedders are sent back and written
    here"""
    retries: int = 1
    """how often a run that failed is tried again (bad input and a non-finite loss are not)"""

    def settle(self, runtime: RuntimeConfig) -> RuntimeConfig:
        """`runtime` as workers get it: the device decided, paths absolute.

        Raises:
            UserError: flags that do not go together, a device that there is not, or a missing Ray.
        """
        if self.retries < 0:
            raise UserError(f"--retries {self.retries}: must be at least 0")
        if runtime.resume is not None:
            raise UserError("--resume is for one run; the runs of an experiment resume from their own checkpoints")
        if self.engine == "ray":
            if self.jobs:
                raise UserError(
                    "--jobs belongs to --engine local; Ray makes as many runs at a time as --cpus-per-run and "
                    "--gpus-per-run allow"
                )
            device = ray_tasks.device(self.cpus_per_run, self.gpus_per_run, runtime.device)
        else:
            if (self.cpus_per_run, self.gpus_per_run, self.ray_address, self.collect) != (1, 0, "", False):
                raise UserError("--cpus-per-run, --gpus-per-run, --ray-address and --collect belong to --engine ray")
            if self.jobs < 0:
                raise UserError(f"--jobs {self.jobs}: give a number of runs at a time, or 0 for one per device")
            device = resolve_device(runtime.device)
        root = runtime.data_root and runtime.data_root.expanduser().absolute()
        return replace(runtime, device=device, results=runtime.results.expanduser().absolute(), data_root=root)  # pyright: ignore[reportArgumentType]

    def width(self, device: str) -> int:
        """How many runs go on at a time."""
        if self.engine == "ray":
            return ray_tasks.width(self.cpus_per_run, self.gpus_per_run, self.ray_address)
        return len(self.environments(device))

    def pool(self, device: str, most: int, isolate: bool) -> Processes | RayTasks | None:
        """What makes the runs, `most` at a time; None for this process."""
        if self.engine == "ray":
            return RayTasks(self.cpus_per_run, self.gpus_per_run, self.ray_address)
        environments = self.environments(device)
        return Processes(environments[:most]) if isolate or len(environments) > 1 else None

    def environments(self, device: str) -> list[dict[str, str]]:
        """The variables of each local worker: its GPU, and its share of the processor's threads (OMP_NUM_THREADS, if
        it is set, is what each run gets)."""
        gpus: list[str] = []
        if device == "cuda":
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
        width = self.jobs or len(gpus) or 1
        shared = {}
        if width > 1 and "OMP_NUM_THREADS" not in os.environ:
            shared["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // width))
        return [{**shared, "CUDA_VISIBLE_DEVICES": gpus[n % len(gpus)]} if gpus else shared for n in range(width)]


@dataclass(frozen=True)
class JobResult:
    """What came of one configuration: a record, or an error in one line."""

    config: RunConfig
    id: str
    record: Record | None = None
    error: str | None = None


def run_all(
    configs: Sequence[RunConfig], runtime: RuntimeConfig, workers: Workers | None = None, isolate: bool = False
) -> list[JobResult]:
    """Makes all runs that have no record yet. Runs that fail do not stop the others.

    Args:
        configs: the runs; one that comes twice is made once.
        runtime: where data and results are, and how runs are made.
        workers: what makes them.
        isolate: make runs in processes of their own, with logs, even if there is one at a time.

    Returns:
        The result of each configuration, in their order.

    Raises:
        UserError: a configuration that cannot work, a data set that cannot be opened, or a results folder that cannot
            be written to.
    """
    workers = workers or Workers()
    for config in configs:
        validate(config)
    runtime = workers.settle(runtime)
    results = ResultsFolder(runtime.results)
    ids = list(run_ids(configs, runtime))
    jobs = dict(zip(ids, configs, strict=True))
    records = {run_id: recorded(run_id, runtime) for run_id in jobs}
    errors: dict[str, str | None] = {}
    waiting = {run_id: flatten(config) for run_id, config in jobs.items() if records[run_id] is None}
    if waiting:
        check_writable(results.runs)
        pool, started = workers.pool(runtime.device, len(waiting), isolate), time.monotonic()
        configurations = [jobs[run_id] for run_id in waiting]
        times = estimate(configurations, results.read_records(), runtime.device)
        expected = {run_id: seconds for run_id, seconds in zip(waiting, times, strict=True) if seconds is not None}
        width = min(workers.width(runtime.device), len(waiting)) if pool else 1
        with pool or nullcontext(), closing(attempts(waiting, runtime, workers, pool, expected)) as ended:
            shown = track(ended, "runs", len(waiting), "runs") if pool else ended  # runs in this process draw bars
            for done, (run_id, error) in enumerate(shown, start=1):
                try:
                    records[run_id] = None if error else read_record(results.record(run_id))
                except UserError as reason:
                    error = f"no record in {results.runs} ({reason}); is the results folder shared?"
                errors[run_id], text = error, f"failed: {error}"
                if record := records[run_id]:
                    recall = 100 * record.metrics.get("recall_at_1", float("nan"))
                    text = f"R@1 {recall:.2f}, {duration(record.cost['total_seconds'])}"
                usual = (time.monotonic() - started) / done * width
                rest = sum(expected.get(other, usual) for other in waiting if other not in errors) / width
                left = f", about {duration(rest)} left" if rest >= 1 else ""
                logger.info(f"{done}/{len(waiting)} {run_id}: {text}{left}")
    return [
        JobResult(config, run_id, records[run_id], errors.get(run_id))
        for run_id, config in zip(ids, configs, strict=True)
    ]


def attempts(
    jobs: Jobs, runtime: RuntimeConfig, workers: Workers, pool: Executor | None, expected: Mapping[str, float] = {}
) -> Generator[tuple[str, str | None]]:
    """Tries all runs, then again those that failed or that other drivers have, and so on; yields the id of each run
    that has ended and its error, None if it has a record. Seconds are `expected` of some."""
    waiting, failures = dict(jobs), Counter[str]()
    while waiting:
        are_busy = True
        for run_id, outcome in attempt(dict(waiting), runtime, workers.collect, pool, expected):
            if outcome.is_busy:
                continue
            are_busy = False
            failures[run_id] += 1
            if outcome.is_final or failures[run_id] > workers.retries:
                del waiting[run_id]
                yield run_id, outcome.error
        if are_busy:
            time.sleep(POLL)


def attempt(
    jobs: Jobs, runtime: RuntimeConfig, collect: bool, pool: Executor | None, expected: Mapping[str, float] = {}
) -> Iterator[tuple[str, Outcome]]:
    """Tries each run once: one after the other in this process, or as the pool is free."""
    if pool is None:
        started, later = time.monotonic(), list(jobs)
        for run_id, flat in jobs.items():
            later.remove(run_id)
            rest = lambda usual: sum(expected.get(other, usual) for other in later)  # noqa: E731
            with followed_by(rest, time.monotonic() - started):
                outcome = make_run(run_id, flat, runtime, has_log=False)
            yield run_id, outcome
        return
    futures = {pool.submit(make_run, run_id, flat, runtime, True, collect): run_id for run_id, flat in jobs.items()}
    for future in as_completed(futures):
        run_id, error = futures.pop(future), future.exception()
        if error is None:
            outcome = future.result()
        else:  # Ray has tried again itself
            text = f"{type(error).__name__}: {first_line(error)}"
            outcome = Outcome(text, is_final=not isinstance(error, ChildProcessError))
        for name, content in outcome.files.items():
            with atomic_path(runtime.results / name) as temporary:
                temporary.write_bytes(content)
        yield run_id, outcome
