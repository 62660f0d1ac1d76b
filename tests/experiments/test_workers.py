"""Many runs: what is recorded is left alone, what fails is listed, the others go on; workers that crash, and drivers
that meet."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from retrieval_bench.config import RunConfig, RuntimeConfig
from retrieval_bench.errors import UserError
from retrieval_bench.experiments import workers
from retrieval_bench.experiments.workers import CRASHED, Workers, run_all
from retrieval_bench.identity import run_ids
from retrieval_bench.records import Record, ResultsFolder
from retrieval_bench.run import run
from tests.experiments.helpers import DIVERGES, QUICK, TOO_DEEP

LONG = QUICK.changed(strategy="standard", train__epochs=3)


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_failures_are_listed_and_the_others_go_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    configs = [replace(QUICK, seed=1), DIVERGES, TOO_DEEP, QUICK, QUICK]
    results = run_all(configs, RuntimeConfig(results=tmp_path), retries=3)
    assert [result.config for result in results] == configs
    assert [result.record is None for result in results] == [False, True, True, False, False]
    assert [result.error is None for result in results] == [True, False, False, True, True]
    assert "lower --lr" in (results[1].error or "")
    assert (results[2].error or "").startswith("--last-k.k 99: the backbone has")
    printed = capfd.readouterr().err
    assert printed.count("error: ") == 2, "what would only fail again is not tried again"
    lines = [line for line in printed.splitlines() if "/4 " in line]
    assert [line.split()[0] for line in lines] == ["1/4", "2/4", "3/4", "4/4"]
    assert [line.split()[2] for line in lines] == ["R@1", "failed:", "failed:", "R@1"]
    for result in results:
        if result.record:
            assert (result.record.id, result.record.seed) == (result.id, result.config.seed)
    again = run_all(configs[3:], RuntimeConfig(results=tmp_path))
    assert again == results[3:]
    assert "already recorded" in capfd.readouterr().err


def test_workers_make_the_bits_of_one_process_and_keep_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a weight file, flags of the runtime, and a run that is forced."""
    from safetensors.torch import save_file
    from timm import create_model

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    save_file(create_model("resnet10t", num_classes=0).state_dict(), tmp_path / "w.safetensors")
    config = replace(QUICK.changed(model__weights=str(tmp_path / "w.safetensors")), strategy="standard")
    alone = run(config, RuntimeConfig(results=tmp_path / "alone"))
    runtime = RuntimeConfig(results=tmp_path / "workers", checkpoint_every=0, keep=True)
    results = run_all([config, TOO_DEEP], runtime, isolate=True)
    assert results[0].record is not None, results[0].error
    assert (results[0].id, results[0].record.metrics) == (alone.id, alone.metrics)
    folder = ResultsFolder(runtime.results)
    assert folder.model(alone.id).with_name(f"{alone.id}.safetensors").exists()
    assert "--checkpoint-every 0" in folder.log(alone.id).read_text().splitlines()[0]
    assert "recorded in" in folder.log(alone.id).read_text()
    assert f"error: {results[1].error}" in folder.log(results[1].id).read_text()
    (forced,) = run_all([config], replace(runtime, force=True), isolate=True)
    assert forced.record is not None
    assert folder.log(alone.id).read_text().count(": R@1 ") == 2


@pytest.mark.parametrize(("failures", "retries"), [(1, 1), (2, 1), (1, 0)])
def test_a_run_that_breaks_down_is_retried_so_often(
    failures: int, retries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[RunConfig] = []

    def breaks(config: RunConfig, runtime: RuntimeConfig, wait: bool) -> Record:
        attempts.append(config)
        if len(attempts) <= failures:
            raise RuntimeError("shapes do not match\nand more")
        return run(config, runtime, wait=wait)

    monkeypatch.setattr(workers, "run", breaks)
    (result,) = run_all([QUICK], RuntimeConfig(results=tmp_path), retries=retries)
    fails = failures > retries
    assert (result.record is None, result.error) == (fails, "RuntimeError: shapes do not match" if fails else None)
    assert len(attempts) == min(failures, retries) + 1


def test_a_crash_counts_as_an_attempt(tmp_path: Path) -> None:
    """A worker that finds the attempts of a killed one."""
    jobs = {"a": QUICK}
    (tmp_path / "a.json").write_text(
        json.dumps({"attempts": 2, "worker": 1, "error": None, "ended": False, "seconds": 1.5})
    )
    settled = Workers().settle(RuntimeConfig(results=tmp_path / "results"))
    assert list(workers.work(jobs, settled, 1, tmp_path)) == [("a", CRASHED, 1.5)]


def test_a_run_of_another_process_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are made first, and a record that has come meanwhile is taken."""
    monkeypatch.setattr(workers, "POLL", 0.01)
    results, configs = ResultsFolder(tmp_path), [QUICK, replace(QUICK, seed=1)]
    names = [result.id for result in run_all(configs, RuntimeConfig(results=tmp_path / "other"))]
    made = []
    with results.lock(names[0]):
        settled = Workers().settle(RuntimeConfig(results=tmp_path))
        worker = workers.work(dict(zip(names, configs, strict=True)), settled, 1, tmp_path, log=False)
        made.append(next(worker)[0])
        record = results.record(names[0])
        record.write_text((tmp_path / "other" / "runs" / record.name).read_text())
    made += [name for name, _, _ in worker]
    assert made == names[::-1]


def test_nothing_is_begun_if_one_run_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown loss"):
        run_all([QUICK, QUICK.changed(loss__loss="none")], RuntimeConfig(results=tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        run_all([QUICK], RuntimeConfig(results=tmp_path / "file"))
    assert not (tmp_path / "runs").exists()


def test_threads_are_divided_and_gpus_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Workers(jobs=3).environments("cpu") == [{"OMP_NUM_THREADS": "2"}] * 3
    assert Workers(jobs=9).environments("cpu") == [{"OMP_NUM_THREADS": "1"}] * 9
    assert Workers().environments("cpu") == [{}], "one run is as it is without workers"
    gpus = [place["CUDA_VISIBLE_DEVICES"] for place in Workers().environments("cuda")]
    assert gpus == ["0", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    gpus = [place["CUDA_VISIBLE_DEVICES"] for place in Workers(jobs=3).environments("cuda")]
    assert gpus == ["5", "6", "5"]
    assert Workers(jobs=3).environments("cpu") == [{}] * 3, "what the user says of each run"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process that its parent has ended")
@pytest.mark.parametrize("has_ended", [True, False])
def test_a_worker_does_not_outlive_its_driver(has_ended: bool) -> None:
    """The driver is killed once its worker waits; or it has ended before the worker looks."""
    child = "import time; from retrieval_bench.experiments.workers import follow; follow(PARENT); "
    child += "print('lives', flush=True); time.sleep(60)"
    if has_ended:
        ended = subprocess.run([sys.executable, "-c", child.replace("PARENT", "1")], check=False)
        assert ended.returncode == -signal.SIGTERM
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


def kill_workers(results: Path, count: int, signals: list[int]) -> threading.Thread:
    """A thread that kills so many workers of this process, each once it has kept a checkpoint."""

    def kill() -> None:
        for _ in range(count):
            wait_until(lambda: list(results.glob("checkpoints/*/epoch-*")))
            children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
            os.kill(int(children[-1]), signal.SIGKILL)
            signals.append(signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


@pytest.mark.skipif(sys.platform != "linux", reason="the children of a process are found in /proc")
@pytest.mark.parametrize("retries", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_worker_costs_its_run_an_attempt(retries: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config, signals = LONG.changed(train__epochs=12), []
    killer = kill_workers(tmp_path, 1, signals)
    (result,) = run_all([config], RuntimeConfig(results=tmp_path), retries=retries, isolate=True)
    killer.join()
    assert result.error == (None if retries else "killed by SIGKILL")
    if result.record is not None:
        assert "resum" in ResultsFolder(tmp_path).log(result.id).read_text(), "it resumes from the checkpoint"


def test_two_drivers_on_one_results_folder_make_every_run_once(tmp_path: Path) -> None:
    configs = [replace(config, seed=seed) for config in (QUICK, LONG) for seed in (0, 1)]
    runtime = Workers().settle(RuntimeConfig(results=tmp_path / "results"))
    jobs = dict(zip(run_ids(configs, runtime), configs, strict=True))
    drivers = []
    for name in ("one", "other"):
        shared = tmp_path / name
        shared.mkdir()
        workers.write_jobs(shared, jobs, runtime, 1)
        drivers.append(workers.start_worker(shared, {"OMP_NUM_THREADS": "1"}))
    assert [driver.wait(200) for driver in drivers] == [0, 0]
    results = ResultsFolder(tmp_path / "results")
    assert {record.id for record in results.read_records()} == jobs.keys()
    for name in jobs:
        log = results.log(name).read_text()
        assert log.count("recorded in") - log.count("already recorded in") == 1, log
