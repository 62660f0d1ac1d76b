"""The engines with jobs that are quick, and the process that a run is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from retrieval_bench.errors import UserError
from retrieval_bench.grid.call import run_process
from retrieval_bench.grid.engines import Local, Place, local_engine


def in_reverse(job: int, place: Place) -> str:
    """Later jobs end sooner."""
    if job == 2:
        raise KeyError("two")
    return f"{job} {place.environment.get('OMP_NUM_THREADS', '-')}"


def test_local_jobs_end_with_what_came_of_them() -> None:
    with closing(Local(2).carry_out(in_reverse, range(5))) as ended:
        found = dict(ended)
    assert isinstance(found.pop(2), KeyError)
    assert {number: told.split()[0] for number, told in found.items()} == {0: "0", 1: "1", 3: "3", 4: "4"}


def test_no_more_jobs_at_a_time_than_places_and_each_place_once() -> None:
    held, most = [], []

    def work(job: int, place: Place) -> None:
        held.append(place.environment["CUDA_VISIBLE_DEVICES"])
        most.append(sorted(held))
        time.sleep(0.01)
        held.remove(place.environment["CUDA_VISIBLE_DEVICES"])

    with closing(Local(gpus=("1", "3")).carry_out(work, range(12))) as ended:
        assert len(list(ended)) == 12
    assert all(len(names) <= 2 and len(set(names)) == len(names) for names in most)
    assert {name for names in most for name in names} == {"1", "3"}


def test_threads_are_divided_and_gpus_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert Local(3).environments() == [{"OMP_NUM_THREADS": "2"}] * 3
    assert Local(9).environments() == [{"OMP_NUM_THREADS": "1"}] * 9
    assert Local().environments() == [{}], "one run is as it is without a grid"
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert Local(3).environments() == [{}] * 3, "what the user says of each run"
    assert [place["CUDA_VISIBLE_DEVICES"] for place in Local(3, ("5", "6")).environments()] == ["5", "6", "5"]


def test_the_local_engine_takes_the_gpus_that_are_to_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert local_engine(0, "auto") == Local(0, ("0", "1"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert local_engine(4, "cuda") == Local(4, ("4", "7"))
    assert local_engine(2, "cpu") == Local(2)
    with pytest.raises(UserError, match="--jobs -1"):
        local_engine(-1, "cpu")


def test_whoever_stops_listening_stops_the_jobs() -> None:
    begun, stopped = [], threading.Event()

    def work(job: int, place: Place) -> None:
        begun.append(job)
        if job:
            assert place.stop.wait(60)
            stopped.set()

    with closing(Local(2).carry_out(work, range(8))) as ended:
        assert next(ended)[0] == 0
    assert stopped.is_set(), "it was waited for"
    assert len(begun) <= 3, "the others were not begun"


def test_a_process_leaves_its_output_and_its_exit_code(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "log"
    assert run_process(["strategies"], log, Place()) == 0
    assert run_process(["strategys"], log, Place()) == 2
    lines = log.read_text().splitlines()
    assert lines[0] == "$ python -m retrieval_bench strategies"
    assert lines[-2] == "$ python -m retrieval_bench strategys"
    assert lines[-1].startswith("error: unknown command")


def test_a_process_is_stopped_when_the_waiting_is(tmp_path: Path) -> None:
    place = Place()
    threading.Timer(0.3, place.stop.set).start()
    started: Any = time.monotonic()
    with pytest.raises(InterruptedError):
        run_process(["run", "--dataset", "synthetic"], tmp_path / "log", place)
    assert time.monotonic() - started < 60


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process that its parent has ended")
@pytest.mark.parametrize("before", [True, False])
def test_a_process_does_not_outlive_its_parent(before: bool, tmp_path: Path) -> None:
    """The parent is killed once its child waits; or it has ended before the child looks."""
    child = (
        f"import time; from retrieval_bench.grid.child import follow; follow({os.getpid() if before else 'PARENT'}); "
        + ("print('lives', flush=True); time.sleep(60)")
    )
    if before:
        assert (
            subprocess.run([sys.executable, "-c", child.replace(str(os.getpid()), "1")], check=False).returncode
            == -signal.SIGTERM
        )
        return
    parent = (
        "import os, subprocess, sys, time\n"
        f"child = {child!r}.replace('PARENT', str(os.getpid()))\n"
        "subprocess.Popen([sys.executable, '-c', child])\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "lives\n"
    process.kill()
    process.wait()
    assert process.stdout.read() == "", "the pipe ends when the last process that holds it does"
