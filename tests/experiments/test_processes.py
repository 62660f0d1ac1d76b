"""The pool of processes on this machine and that of Ray's tasks: results, processes that die, and stopping."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest

from retrieval_bench.errors import UserError
from retrieval_bench.experiments import ray_tasks
from retrieval_bench.experiments.processes import PACKAGE, Processes
from retrieval_bench.experiments.ray_tasks import RayTasks
from tests.experiments import calls


@pytest.fixture(params=["processes", "ray"])
def pool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Executor:
    """Two at a time."""
    if request.param == "processes":
        return Processes([{"NUMBER": "0"}, {"NUMBER": "1"}])
    request.getfixturevalue("ray")
    monkeypatch.setattr(ray_tasks, "LOSSES", 0)
    return RayTasks(1, 0, "")


def test_calls_return_what_they_return_and_one_that_dies_costs_only_itself(pool: Executor) -> None:
    with pool:
        futures = [pool.submit(calls.add, number, 1) for number in range(4)]
        error = pool.submit(calls.die, 3).exception()
        assert [future.result() for future in futures] == [1, 2, 3, 4]
        if isinstance(pool, Processes):
            assert {pool.submit(os.getenv, "NUMBER").result() for _ in range(4)} == {"0", "1"}
            killed = pool.submit(calls.die, -9).exception()
            reasons = [(type(reason), str(reason)) for reason in (error, killed)]
            ended = "its process ended: "
            assert reasons == [(ChildProcessError, f"{ended}{how}") for how in ("exit code 3", "killed by SIGKILL")]
        assert pool.submit(calls.add, 2, 3).result() == 5


def test_leaving_interrupts_what_is_under_way_and_waits_for_it(pool: Executor, tmp_path: Path) -> None:
    with pool:
        first, *_ = [pool.submit(calls.sleep, str(n), str(tmp_path), 60 if n else 0) for n in range(6)]
        assert first.result() == "0"
        calls.wait_until(lambda: len(list(tmp_path.glob("begun-*"))) == 3)
    assert {path.name for path in tmp_path.glob("stopped-*")} == {"stopped-1", "stopped-2"}
    assert len(list(tmp_path.glob("begun-*"))) == 3


def test_a_process_does_not_outlive_its_driver(tmp_path: Path) -> None:
    code = f"from tests.experiments.calls import drive; drive({str(tmp_path)!r})"
    environment = {**os.environ, "PYTHONPATH": PACKAGE}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == -9
    calls.wait_until(lambda: (tmp_path / "stopped-0").exists())
    worker = (tmp_path / "begun-0").read_text()
    calls.wait_until(lambda: not Path(f"/proc/{worker}").exists())


def test_tasks_have_as_many_threads_as_cores(ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for cores in (0.5, 2):
        with RayTasks(cores, 0, "") as pool:
            assert pool.submit(calls.threads).result() == ("1 1" if cores < 1 else "2 2")
    assert [ray_tasks.width(cpus, 0, "") for cpus in (0.5, 1, 2, 3)] == [4, 2, 1, 0]
    assert ray_tasks.width(1, 0.5, "") == 0


def test_devices_follow_from_shares_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [ray_tasks.device(1, 0, requested) for requested in ("auto", "cpu")] == ["cpu", "cpu"]
    assert [ray_tasks.device(1, 0.5, requested) for requested in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    for cpus, gpus, requested, message in (
        (1, 0, "cuda", "--gpus-per-run 1"),
        (-1, 1, "auto", "--cpus-per-run"),
        (0, 0, "auto", "--cpus-per-run"),
    ):
        with pytest.raises(UserError, match=message):
            ray_tasks.device(cpus, gpus, requested)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"retrieval_bench\[ray\]"):
        ray_tasks.device(1, 0, "auto")


def test_no_cluster_at_the_address_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match=r"--ray-address 127\.0\.0\.1:1: no Ray cluster"):
        ray_tasks.width(1, 0, "127.0.0.1:1")
