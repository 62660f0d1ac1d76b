"""One worker: the results folder is the queue.

It goes through the runs. One that is recorded is passed over, one whose lock another process holds is skipped and
looked at again later, one that fails is retried a bounded number of times. So a worker in the user's process, several
subprocesses, two drivers on one results folder and the tasks of a cluster are the same worker, and every run is made
once. ``python -m retrieval_bench.experiments.worker FOLDER PARENT`` is one in a process of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from retrieval_bench.config import RunConfig, RuntimeConfig, flatten, runtime_command, to_command, unflatten
from retrieval_bench.errors import UserError, first_line
from retrieval_bench.files import Locked, cache_dir, locked, write_text
from retrieval_bench.progress import logger, replace_unknown_signs
from retrieval_bench.records import ResultsFolder
from retrieval_bench.run import run

POLL = 0.3
"""Seconds between looks at runs that others make."""
CRASHED = "its process was killed or crashed"
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl(2): the signal that a process gets when the thread that started it ends."""
Made = Generator[tuple[str, str | None, float]]
"""Of each run that has ended: its id, its error if it failed, and its seconds."""


def work(jobs: Mapping[str, RunConfig], runtime: RuntimeConfig, retries: int, shared: Path, log: bool = True) -> Made:
    """One worker: goes round the runs until each has a record or has failed.

    Args:
        jobs: the runs by id.
        runtime: as :meth:`Workers.settle` gives it.
        retries: how often a failed run is tried again, by all workers together.
        shared: folder in which the workers of one driver count attempts, a file per run.
        log: write what runs print to ``<results>/logs``.
    """
    waiting, results = dict(jobs), ResultsFolder(runtime.results)
    together = "WORLD_SIZE" in os.environ  # the processes of torchrun make each run together, so they wait for its lock
    while waiting:
        before = len(waiting)
        for run_id, config in list(waiting.items()):
            path = shared / f"{run_id}.json"
            try:
                with locked(path, f"running {run_id}", wait=False):
                    state = read_state(path)
                    if not state["ended"] and state["attempts"] > retries:
                        state |= {"ended": True, "error": CRASHED}
                    if not state["ended"]:
                        if not together:
                            with results.lock(run_id, wait=False):
                                pass  # no other driver makes it; a crash from here on counts as an attempt
                        write_text(path, json.dumps(state | {"attempts": state["attempts"] + 1, "worker": os.getpid()}))
                        started = time.monotonic()
                        try:
                            error, is_final = attempt(config, runtime, results.log(run_id) if log else None, together)
                        except Locked:  # another driver was faster
                            write_text(path, json.dumps(state))
                            raise
                        state |= {"attempts": state["attempts"] + 1, "error": error}
                        state["seconds"] += time.monotonic() - started
                        state["ended"] = error is None or is_final or state["attempts"] > retries
                    write_text(path, json.dumps(state))
            except Locked:
                continue
            if state["ended"]:
                del waiting[run_id]
                yield run_id, state["error"], state["seconds"]
        if len(waiting) == before:
            time.sleep(POLL)


def read_state(path: Path) -> dict[str, Any]:
    new = {"attempts": 0, "worker": 0, "error": None, "ended": False, "seconds": 0.0}
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else new


def attempt(config: RunConfig, runtime: RuntimeConfig, log: Path | None, wait: bool) -> tuple[str | None, bool]:
    """Makes one run in this process; what it prints goes to `log`, or where it usually goes.

    Returns:
        The error in one line, None if there is a record; and whether another attempt would only fail again.
    """
    with output_to(log) if log else nullcontext():
        if log:
            print(f"$ python -m retrieval_bench run {shlex.join([*to_command(config), *runtime_command(runtime)])}")
        try:
            run(config, runtime, wait=wait)
        except UserError as error:
            logger.info(f"error: {error}")
            return str(error), True
        except Exception as error:
            traceback.print_exc()
            return f"{type(error).__name__}: {first_line(error)}", False
    return None, True


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """A block in which this process, and what it starts, adds standard output and error to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    before = {number: os.dup(number) for number in (1, 2)}
    try:
        with path.open("ab") as stream:
            for number in before:
                os.dup2(stream.fileno(), number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in before.items():
            os.dup2(copy, number)
            os.close(copy)


def write_jobs(shared: Path, jobs: Mapping[str, RunConfig], runtime: RuntimeConfig, retries: int) -> None:
    """Writes what the workers of a driver are to make."""
    flat = {run_id: flatten(config) for run_id, config in jobs.items()}
    values = {"jobs": flat, "runtime": asdict(runtime), "retries": retries}
    write_text(shared / "jobs", json.dumps(values, default=str))


def follow(parent: int) -> None:
    """From now on SIGTERM comes when the parent process ends, however it ends; one that has ended already is followed
    at once.

    Elsewhere than on Linux nothing happens: a worker whose driver was killed makes its runs to the end.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def main(shared: Path, parent: int) -> int:
    """``python -m retrieval_bench.experiments.worker FOLDER PARENT``: a worker that ends with the process PARENT."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    replace_unknown_signs()
    try:
        follow(parent)
        values = json.loads((shared / "jobs").read_text(encoding="utf-8"))
        runtime = values["runtime"]
        for name in ("results", "data_root"):
            runtime[name] = Path(runtime[name]) if runtime[name] else None
        runtime["track"] = tuple(runtime["track"])
        jobs = {run_id: unflatten(flat) for run_id, flat in values["jobs"].items()}
        for _ in work(jobs, RuntimeConfig(**runtime), values["retries"], shared):
            pass
    except KeyboardInterrupt:
        return 128 + signal.SIGTERM
    return 0


def make_one(
    run_id: str, flat: dict[str, Any], runtime: RuntimeConfig, retries: int, collect: bool
) -> tuple[str | None, float, dict[str, bytes]]:
    """One run, in a process of Ray's: its error, its seconds, and with `collect` the contents of what it left, by path
    below the results folder."""
    if collect:
        runtime = replace(runtime, results=cache_dir() / "collected")
    with TemporaryDirectory() as folder:
        ((_, error, seconds),) = work({run_id: unflatten(flat)}, runtime, retries, Path(folder))
    files: dict[str, bytes] = {}
    results = ResultsFolder(runtime.results)
    kept = results.model(run_id).parent.glob(f"{run_id}.*")
    for path in (results.record(run_id), results.details(run_id), results.log(run_id), *kept) if collect else ():
        if path.exists():
            files[path.relative_to(runtime.results).as_posix()] = path.read_bytes()
            path.unlink()
    return error, seconds, files


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), int(sys.argv[2])))
