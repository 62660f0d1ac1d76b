"""Real sweeps that are stopped, lose a machine, or lose their driver. Minutes: `pytest -m slow tests/experiments`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from retrieval_bench.config import RuntimeConfig
from retrieval_bench.experiments.sweep import sweep
from retrieval_bench.experiments.workers import Workers, run_all
from tests.experiments.calls import wait_until
from tests.experiments.helpers import FLAGS, small_ray

pytestmark = pytest.mark.slow
SWEEP = [*FLAGS, "--no-freeze-bn", "--strategy", "frozen,standard", "--seed", "0,1", "--epochs", "8"]
COSTS = ("parameters", "trained_parameters", "images_seen", "macs")
LOCAL, RAY = ("--jobs", "2"), ("--engine", "ray")


def hear_interrupts() -> None:
    """A shell that put the tests into the background made them deaf to Ctrl-C, and what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(results: Path, *more: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "retrieval_bench", "sweep", *SWEEP, "--results", str(results), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    return subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=hear_interrupts)


def finish(results: Path, *more: str) -> None:
    process = start(results, *more)
    _, printed = process.communicate(timeout=500)
    assert process.returncode == 0, printed
    assert "4 runs: 4 recorded, 0 failed" in printed


def records(results: Path) -> dict[str, Any]:
    """The records by name, without what differs from time to time; each of them was made once, by the logs."""
    found = {}
    for path in sorted((results / "runs").glob("*.json")):
        record = json.loads(path.read_text())
        record["cost"] = {name: record["cost"][name] for name in COSTS}
        record["training"].pop("resumed", None)
        for name in ("finished", "command", "environment"):
            del record[name]
        found[path.stem] = record
        log = (results / "logs" / f"{path.stem}.log").read_text()
        assert log.count(f"recorded in {results}") - log.count("already recorded in") == 1, log
    return found


def has_checkpoints(results: Path) -> list[Path]:
    return list(results.glob("checkpoints/*/epoch-0002*"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The records of the sweep by two local workers."""
    results = tmp_path_factory.mktemp("undisturbed")
    finish(results, *LOCAL)
    assert len(records(results)) == 4
    return records(results)


@pytest.mark.parametrize(
    ("engine", "sent", "status"),
    [(LOCAL, signal.SIGINT, 130), (LOCAL, signal.SIGKILL, -9), (RAY, signal.SIGTERM, 143), (RAY, signal.SIGKILL, -9)],
)
def test_a_driver_that_is_stopped_resumes_with_the_same_command(
    engine: tuple[str, ...], sent: signal.Signals, status: int, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    if engine == RAY:
        pytest.importorskip("ray")
    process = start(tmp_path, *engine)
    wait_until(lambda: list(tmp_path.glob("runs/*.json")) and has_checkpoints(tmp_path))
    process.send_signal(sent)
    _, printed = process.communicate(timeout=100)
    assert process.returncode == status, printed
    assert "Traceback" not in printed
    assert len(list(tmp_path.glob("runs/*.json"))) < 4
    if sent != signal.SIGKILL:
        assert printed.splitlines()[-1].startswith("interrupted: the same command resumes")
        assert (tmp_path / "leaderboard.csv").exists(), "what has finished is in the table"
    finish(tmp_path, *engine)
    assert records(tmp_path) == undisturbed
    logs = "".join(path.read_text() for path in (tmp_path / "logs").iterdir())
    assert "resum" in logs


def test_a_sweep_outlives_a_machine(
    undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    victim = cluster.add_node(num_cpus=1)

    def kill() -> None:
        wait_until(lambda: has_checkpoints(tmp_path))
        cluster.remove_node(victim, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    workers = Workers("ray")
    try:
        with small_ray(address=cluster.address):
            results = run_all(sweep(SWEEP).configs, RuntimeConfig(results=tmp_path), workers)
            killer.join()
            wait_until(lambda: workers.width("cpu") == 1)  # the cluster notices the loss
    finally:
        killer.join()
        cluster.shutdown()
    assert [result.error for result in results] == [None] * 4
    assert records(tmp_path) == undisturbed


def test_the_driver_of_a_cluster_is_killed_and_another_takes_over(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """The cluster lives on, so that runs that were in flight meet those that the second driver begins."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    address = ("--ray-address", str(cluster.address))
    try:
        process = start(tmp_path, *RAY, *address)
        wait_until(lambda: has_checkpoints(tmp_path))
        process.kill()
        process.communicate()
        finish(tmp_path, *RAY, *address)
    finally:
        cluster.shutdown()
    assert records(tmp_path) == undisturbed
