"""Time left is that of the whole command: of this run, of the runs after it, and of what comes after those."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from retrieval_bench.config import RuntimeConfig
from retrieval_bench.experiments import workers
from retrieval_bench.experiments.worker import Outcome
from retrieval_bench.progress import followed_by, time_left


def test_time_left_adds_up_over_the_parts_of_a_command() -> None:
    assert time_left(10, 0.25) == ", about 30 s left"
    with followed_by(lambda seconds: 2 * seconds):  # two more rounds of whatever is inside
        with followed_by(
            lambda seconds: 4 + seconds, done=6
        ):  # a run of 6 s before, one of 4 s and one like this after
            own, later = 3, 4 + 4
            assert time_left(1, 0.25) == f", about {own + later + 2 * (6 + 4 + later)} s left"
        assert time_left(5, 1) == ", about 10 s left"
    assert time_left(100, 1) == time_left(5, 0) == ""


def test_a_run_of_many_counts_those_after_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown: list[str] = []
    monkeypatch.setattr(workers, "make_run", lambda *_, **__: shown.append(time_left(10, 0.5)) or Outcome())
    jobs = {name: {} for name in ("first", "second", "third")}
    for _ in workers.attempt(jobs, RuntimeConfig(results=tmp_path), False, None, {"second": 40.0}):
        pass
    assert shown == [f", about {seconds} s left" for seconds in (10 + 40 + 20, 10 + 20, 10)]


def test_the_first_line_comes_before_what_is_slow_to_load() -> None:
    started = time.perf_counter()
    words = [sys.executable, "-m", "retrieval_bench", "run", "--strategy", "?"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert process.stderr.readline() == "run: loading, a few seconds\n"
        first = time.perf_counter() - started
        assert process.stderr.read().startswith("error: unknown strategy")
    assert first < 0.5 * (time.perf_counter() - started), "the time itself depends on what else the machine does"
