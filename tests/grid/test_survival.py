"""Real grids that are stopped, lose a machine, or lose the process that drives them. Minutes: `pytest -m slow tests/grid`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retrieval_bench.config import RuntimeConfig
from retrieval_bench.grid.carry_out import carry_out
from retrieval_bench.grid.ray_engine import Ray
from tests.grid.ray_jobs import small_ray
from tests.grid.test_axes import runs
from tests.test_interrupted import hear_interrupts

pytestmark = pytest.mark.slow
FLAGS = [
    "--dataset",
    "synthetic",
    "--backbone",
    "resnet10t",
    "--weights",
    "none",
    "--image-size",
    "32",
    "--batch-size",
    "16",
]
GRID = [*FLAGS, "--no-freeze-bn", "--strategy", "frozen,standard", "--seed", "0,1", "--epochs", "8"]
UNTOLD = ("finished", "command", "cost", "environment")
"""Parts of a record that say when, how fast and where."""


def start(results: Path, *more: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "retrieval_bench", "sweep", *GRID, "--results", str(results), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    return subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=hear_interrupts
    )


def finish(results: Path, *more: str) -> str:
    process = start(results, *more)
    printed, said = process.communicate(timeout=500)
    assert process.returncode == 0, said
    return printed


def wait_until(come: Callable[[], object]) -> None:
    end = time.monotonic() + 200
    while not come():
        assert time.monotonic() < end
        time.sleep(0.05)


def records(results: Path) -> dict[str, Any]:
    """The records by name, without what differs from time to time; each of them was made once, by the logs."""
    found = {}
    for path in sorted((results / "runs").glob("*.json")):
        record = json.loads(path.read_text())
        record["cost"] = {
            name: record["cost"][name] for name in ("parameters", "trained_parameters", "images_seen", "macs")
        }
        record["training"].pop("resumed", None)
        found[path.stem] = {name: value for name, value in record.items() if name not in UNTOLD or name == "cost"}
        log = (results / "logs" / f"{path.stem}.log").read_text()
        assert log.count(f"recorded in {results}") - log.count("already recorded in") == 1, log
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The records of the grid by the local engine, two runs at a time."""
    results = tmp_path_factory.mktemp("undisturbed")
    assert "4 runs: 4 recorded, 0 failed" in finish(results, "--jobs", "2")
    found = records(results)
    assert len(found) == 4
    return found


def test_the_same_grid_by_ray_gives_the_same_records(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    assert "4 runs: 4 recorded, 0 failed" in finish(tmp_path, "--engine", "ray")
    assert records(tmp_path) == undisturbed


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_grid_that_is_stopped_goes_on_with_the_same_command(
    engine: str, sent: signal.Signals, status: int, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    if engine == "ray":
        pytest.importorskip("ray")
    more = ("--jobs", "2") if engine == "local" else ("--engine", "ray")
    process = start(tmp_path, *more)
    wait_until(lambda: list(tmp_path.glob("runs/*.json")) and list(tmp_path.glob("checkpoints/*/epoch-0002*")))
    process.send_signal(sent)
    _, said = process.communicate(timeout=100)
    assert process.returncode == status, said
    assert "Traceback" not in said
    recorded = len(list(tmp_path.glob("runs/*.json")))
    assert recorded < 4
    if sent != signal.SIGKILL:
        assert said.splitlines()[-1].startswith("interrupted: the same command goes on")
        assert (tmp_path / "leaderboard.csv").exists(), "what was finished is in the table"
    printed = finish(tmp_path, *more)
    assert "4 runs: 4 recorded, 0 failed" in printed
    assert records(tmp_path) == undisturbed
    logs = "".join(path.read_text() for path in (tmp_path / "logs").iterdir())
    assert "going on after epoch" in logs


def test_a_grid_outlives_a_machine(
    undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    victim = cluster.add_node(num_cpus=1)

    def kill() -> None:
        wait_until(lambda: list(tmp_path.glob("checkpoints/*/epoch-0002")))
        cluster.remove_node(victim, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with small_ray(address=cluster.address):
            outcomes = carry_out(runs(*GRID), RuntimeConfig(results=tmp_path), Ray())
            alive = Ray().width()
    finally:
        killer.join()
        cluster.shutdown()
    assert alive == 1
    assert [outcome.error for outcome in outcomes] == [None] * 4
    assert records(tmp_path) == undisturbed


def test_the_driver_of_a_cluster_is_killed_and_another_goes_on(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """The cluster lives on, so that runs that were in flight meet those that the second driver begins."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    more = ("--engine", "ray", "--ray-address", str(cluster.address))
    try:
        process = start(tmp_path, *more)
        wait_until(lambda: list(tmp_path.glob("checkpoints/*/epoch-0002*")))
        process.kill()
        process.communicate()
        finish(tmp_path, *more)
    finally:
        cluster.shutdown()
    assert records(tmp_path) == undisturbed
