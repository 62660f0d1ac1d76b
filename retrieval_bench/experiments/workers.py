"""Many runs on this machine or on a Ray cluster: what makes them, what they leave, and what the user sees."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from rich import progress

import retrieval_bench
from retrieval_bench.config import RunConfig, RuntimeConfig, flatten
from retrieval_bench.device import resolve_device
from retrieval_bench.errors import UserError, first_line
from retrieval_bench.experiments import ray_tasks
from retrieval_bench.experiments.worker import CRASHED, POLL, Made, make_one, read_state, work, write_jobs
from retrieval_bench.files import atomic_path, check_writable
from retrieval_bench.identity import run_ids
from retrieval_bench.progress import bar_options, logger
from retrieval_bench.records import Record, ResultsFolder, read_record
from retrieval_bench.run import recorded
from retrieval_bench.validation import validate

GRACE = 60
"""Seconds that a worker has to end when it is stopped."""


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

    def settle(self, runtime: RuntimeConfig) -> RuntimeConfig:
        """`runtime` as workers get it: the device decided, paths absolute.

        Raises:
            UserError: flags that do not go together, a device that there is not, or a missing Ray.
        """
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
    configs: Sequence[RunConfig],
    runtime: RuntimeConfig,
    workers: Workers | None = None,
    retries: int = 1,
    isolate: bool = False,
) -> list[JobResult]:
    """Makes all runs that have no record yet. Runs that fail do not stop the others.

    Args:
        configs: the runs; one that comes twice is made once.
        runtime: where data and results are, and how runs are made.
        workers: what makes them.
        retries: how often a run that failed is tried again. Bad input, or a non-finite loss, would only fail again.
        isolate: make runs in processes of their own, with logs, even if there is one at a time.

    Returns:
        The result of each configuration, in their order.

    Raises:
        UserError: a configuration that cannot work, a data set that cannot be opened, or a results folder that cannot
            be written to.
    """
    workers = workers or Workers()
    if retries < 0:
        raise UserError(f"--retries {retries}: must be at least 0")
    for config in configs:
        validate(config)
    runtime = workers.settle(runtime)
    results = ResultsFolder(runtime.results)
    ids = list(run_ids(configs, runtime))
    jobs = dict(zip(ids, configs, strict=True))
    records = {run_id: recorded(run_id, runtime) for run_id in jobs}
    errors: dict[str, str | None] = {}
    waiting = {run_id: config for run_id, config in jobs.items() if records[run_id] is None}
    if waiting:
        check_writable(results.runs)
        width = workers.width(runtime.device)
        here = workers.engine == "local" and width == 1 and not isolate
        with TemporaryDirectory() as folder:
            if here:
                made = work(waiting, runtime, retries, Path(folder), log=False)
            elif workers.engine == "local":
                environments = workers.environments(runtime.device)[: len(waiting)]
                made = _by_processes(waiting, runtime, environments, retries, Path(folder))
            else:
                made = _by_ray(waiting, runtime, workers, retries)
            with watch(len(waiting), width, not here) as show, closing(made):
                for run_id, error, seconds in made:
                    try:
                        records[run_id] = None if error else read_record(results.record(run_id))
                    except UserError as reason:
                        error = f"no record in {results.runs} ({reason}); is the results folder shared?"
                    errors[run_id] = error
                    show(JobResult(jobs[run_id], run_id, records[run_id], error), seconds)
    return [
        JobResult(config, run_id, records[run_id], errors.get(run_id))
        for run_id, config in zip(ids, configs, strict=True)
    ]


def _by_processes(
    jobs: Mapping[str, RunConfig],
    runtime: RuntimeConfig,
    environments: Sequence[Mapping[str, str]],
    retries: int,
    shared: Path,
) -> Made:
    """A worker per environment. One that dies is replaced; closing the generator stops them all, so that runs keep
    their checkpoints."""
    write_jobs(shared, jobs, runtime, retries)
    processes = {place: start_worker(shared, environment) for place, environment in enumerate(environments)}
    deaths: dict[int, str] = {}
    replacements, waiting = len(jobs) * (retries + 1), set(jobs)
    try:
        while processes:
            time.sleep(POLL)
            for place, process in list(processes.items()):
                code = process.poll()
                if code is not None:
                    del processes[place]
                if code:
                    deaths[process.pid] = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                if code and replacements:
                    replacements -= 1
                    processes[place] = start_worker(shared, environments[place])
            for run_id in sorted(waiting):
                state = read_state(shared / f"{run_id}.json")
                if state["ended"]:
                    waiting.remove(run_id)
                    error = deaths.get(state["worker"], CRASHED) if state["error"] == CRASHED else state["error"]
                    yield run_id, error, state["seconds"]
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
    for run_id in sorted(waiting):
        yield run_id, f"no worker survived ({', '.join(deaths.values())})", 0.0


def start_worker(shared: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts a worker for the jobs in `shared`. Ctrl-C of the terminal does not reach it: the driver passes it on."""
    package = str(Path(retrieval_bench.__file__).parents[1])
    paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-m", "retrieval_bench.experiments.worker", str(shared), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment, "PYTHONPATH": paths},
        start_new_session=True,
    )


def _by_ray(jobs: Mapping[str, RunConfig], runtime: RuntimeConfig, workers: Workers, retries: int) -> Made:
    """A task per run. What a run leaves is sent back where the machines share no disk."""
    for run_id, outcome in ray_tasks.make(
        {run_id: (flatten(config), runtime, retries, workers.collect) for run_id, config in jobs.items()},
        make_one,
        workers.cpus_per_run,
        workers.gpus_per_run,
        workers.ray_address,
    ):
        if isinstance(outcome, BaseException):
            yield run_id, f"{type(outcome).__name__}: {first_line(outcome)}", 0.0
            continue
        error, seconds, files = outcome
        for name, content in files.items():
            with atomic_path(runtime.results / name) as temporary:
                temporary.write_bytes(content)
        yield run_id, error, seconds


@contextmanager
def watch(total: int, width: int, is_drawn: bool) -> Iterator[Callable[[JobResult, float], None]]:
    """Yields what shows a run that has ended: a line, and unless runs draw bars of their own a bar with the runs that
    go on, wait and failed, and the time left.

    Args:
        total: how many runs there are to make.
        width: how many go on at a time.
        is_drawn: show the bar.
    """
    options = bar_options()
    options["disable"] = options["disable"] or not is_drawn
    columns = (progress.BarColumn(), progress.TextColumn("{task.description}"), progress.TimeElapsedColumn())
    started, done, failed = time.monotonic(), 0, 0
    with progress.Progress(*columns, **options) as bar:
        task = bar.add_task(f"{total} runs", total=total)

        def show(result: JobResult, seconds: float) -> None:
            nonlocal done, failed
            done, failed = done + 1, failed + (result.error is not None)
            running = min(width, total - done)
            remaining = (time.monotonic() - started) / done * (total - done)
            left = f", about {duration(remaining)} left" if done < total else ""
            text = f"failed: {result.error}"
            if result.record is not None:
                text = f"R@1 {100 * result.record.metrics.get('recall_at_1', float('nan')):.2f}, {duration(seconds)}"
            logger.info(f"{done}/{total} {result.id}: {text}{left}")
            state = f"{running} running, {total - done - running} waiting, {failed} failed{left}"
            bar.update(task, completed=done, description=f"{done}/{total} runs, {state}")

        yield show


def duration(seconds: float) -> str:
    """Seconds for people: ``45 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
