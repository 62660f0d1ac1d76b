"""One run of many, as it is made in this process, in one of its own or in one of Ray's."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retrieval_bench.config import RuntimeConfig, runtime_command, to_command, unflatten
from retrieval_bench.errors import UserError, first_line
from retrieval_bench.files import Locked, cache_dir
from retrieval_bench.progress import logger
from retrieval_bench.records import ResultsFolder
from retrieval_bench.run import run


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt at a run: a record, unless it says otherwise.

    Attributes:
        error: why it failed, in one line.
        is_final: another attempt would change nothing.
        is_busy: another driver makes the run at this moment.
        files: what the run left, as contents by path below the results folder, where it must be sent back.
    """

    error: str | None = None
    is_final: bool = False
    is_busy: bool = False
    files: dict[str, bytes] = field(default_factory=dict)


def make_run(
    run_id: str, flat: dict[str, Any], runtime: RuntimeConfig, has_log: bool = True, collect: bool = False
) -> Outcome:
    """Makes one run in this process.

    Args:
        run_id: its id.
        flat: its configuration, flattened.
        runtime: as :meth:`Workers.settle` gives it.
        has_log: what it prints goes to ``<results>/logs``.
        collect: what it leaves goes into the outcome, since nobody else sees this machine's disk.
    """
    if collect:
        runtime = replace(runtime, results=cache_dir() / "collected")
    config, results = unflatten(flat), ResultsFolder(runtime.results)
    together = "WORLD_SIZE" in os.environ  # the processes of torchrun make each run together, so they wait for its lock
    error, is_final = None, True
    try:
        if not together:
            with results.lock(run_id, wait=False):
                pass  # a run of another driver's is left alone before its log is touched
        with output_to(results.log(run_id)) if has_log else nullcontext():
            if has_log:
                print(f"$ python -m retrieval_bench run {shlex.join([*to_command(config), *runtime_command(runtime)])}")
            try:
                run(config, runtime, wait=together)
            except UserError as reason:
                error = str(reason)
                logger.info(f"error: {error}")
            except Locked:
                raise
            except Exception as reason:
                error, is_final = f"{type(reason).__name__}: {first_line(reason)}", False
                traceback.print_exc()
    except Locked:
        return Outcome(is_busy=True)
    return Outcome(error, is_final, files=take_files(results, run_id) if collect else {})


def take_files(results: ResultsFolder, run_id: str) -> dict[str, bytes]:
    """Removes what a run left, and returns its contents by path below the results folder."""
    kept = results.model(run_id).parent.glob(f"{run_id}.*")
    paths = [results.record(run_id), results.details(run_id), results.log(run_id), *kept]
    files = {path.relative_to(results.root).as_posix(): path.read_bytes() for path in paths if path.exists()}
    for name in files:
        (results.root / name).unlink()
    return files


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """A block in which this process, and what it starts, adds standard output and error to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = {number: os.dup(number) for number in (1, 2)}

    def redirect(targets: dict[int, int]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, target in targets.items():
            os.dup2(target, number)

    try:
        with path.open("ab") as stream:
            redirect(dict.fromkeys(before, stream.fileno()))
        yield
    finally:
        redirect(before)
        for copy in before.values():
            os.close(copy)
