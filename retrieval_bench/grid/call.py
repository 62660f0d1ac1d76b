"""One run of a grid as a process of its own: started, waited for, tried again, and what it left."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import retrieval_bench
from retrieval_bench.details import details_path
from retrieval_bench.files import cache_dir
from retrieval_bench.grid.engines import Place
from retrieval_bench.records import record_path

POLL = 0.1
"""Seconds between looks at a process."""
GRACE = 60
"""Seconds that a process has to end a step and keep a checkpoint."""
BAD_INPUT = 2
"""Exit code of what would fail again: bad input, and a loss that is no number."""


@dataclass(frozen=True)
class Call:
    """A run, as an engine carries it to where it is made.

    Attributes:
        run_id: its name.
        words: of the command, without ``--results``.
        results: the folder for results; None where it is not shared, for one in the cache of the machine that it is made on.
        retries: how often it is tried again.
    """

    run_id: str
    words: tuple[str, ...]
    results: Path | None
    retries: int


@dataclass(frozen=True)
class Ended:
    """What came of a call.

    Attributes:
        error: one line, None if all is well.
        seconds: wall time, all attempts together.
        files: contents by path below the results folder, of a run whose results folder is not shared.
    """

    error: str | None
    seconds: float
    files: dict[str, bytes] = field(default_factory=dict)


def make_run(call: Call, place: Place) -> Ended:
    """Carries out a call (a :data:`retrieval_bench.grid.engines.Work`). Output is added to ``<results>/logs/<id>.log``."""
    results = call.results or cache_dir() / "collected"
    log = log_path(results, call.run_id)
    started, code, begun = time.monotonic(), 1, 0
    for _ in range(call.retries + 1):
        begun = log.stat().st_size if log.exists() else 0
        code = run_process([*call.words, "--results", str(results)], log, place)
        if code in (0, BAD_INPUT):
            break
    error = None if code == 0 else last_error(log, begun, code)
    return Ended(error, time.monotonic() - started, {} if call.results else collect(results, call.run_id))


def log_path(results: Path, run_id: str) -> Path:
    """Where the output of a run is kept below the results folder."""
    return results / "logs" / f"{run_id}.log"


def run_process(words: Sequence[str], log: Path, place: Place) -> int:
    """Runs ``python -m retrieval_bench`` with `words` and waits for it; its exit code, negative for the signal that killed it.

    The process hears no Ctrl-C of the terminal. Whatever ends the waiting sends it SIGTERM, once, so that it ends its step and keeps a
    checkpoint.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "retrieval_bench.grid.child", str(os.getpid()), *words]
    package = str(Path(retrieval_bench.__file__).parents[1])
    paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, **place.environment, "PYTHONPATH": paths}
    with log.open("ab") as output:
        output.write(f"$ python -m retrieval_bench {shlex.join(words)}\n".encode())
        output.flush()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
        )
        try:
            while (code := process.poll()) is None:
                if place.stop.wait(POLL):
                    raise InterruptedError("stopped")
            return code
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(GRACE)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def last_error(log: Path, begun: int, code: int) -> str:
    """One line for a process that failed: what it said last, from byte `begun` of its log on."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    with log.open("rb") as stream:
        stream.seek(begun)
        lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else f"exit code {code}: {lines[-1] if lines else 'it said nothing'}"


def collect(results: Path, run_id: str) -> dict[str, bytes]:
    """What a run left in a results folder, by path below it; record, details and embedder are taken away, checkpoints stay."""
    files: dict[str, bytes] = {}
    for path in (
        record_path(results, run_id),
        details_path(results, run_id),
        log_path(results, run_id),
        *(results / "models").glob(f"{run_id}.*"),
    ):
        if path.exists():
            files[path.relative_to(results).as_posix()] = path.read_bytes()
            path.unlink()
    return files
