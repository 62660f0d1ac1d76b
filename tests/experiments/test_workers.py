"""Many runs: what is recorded is left alone, what fails is listed, the others go on; workers that crash, and drivers
that meet."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from retrieval_bench.config import RunConfig, RuntimeConfig, flatten
from retrieval_bench.errors import UserError
from retrieval_bench.experiments import worker, workers
from retrieval_bench.experiments.worker import Outcome
from retrieval_bench.experiments.workers import Workers, attempts, run_all
from retrieval_bench.records import Record, ResultsFolder
from retrieval_bench.run import run
from tests.experiments.calls import wait_until
from tests.experiments.helpers import DIVERGES, QUICK, TOO_DEEP, Answers

LONG = QUICK.changed(strategy="standard", train__epochs=3)


def test_failures_are_listed_and_the_others_go_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    configs = [replace(QUICK, seed=1), DIVERGES, TOO_DEEP, QUICK, QUICK]
    results = run_all(configs, RuntimeConfig(results=tmp_path), Workers(retries=3))
    assert [result.config for result in results] == configs
    assert [result.record is None for result in results] == [False, True, True, False, False]
    assert [result.error is None for result in results] == [True, False, False, True, True]
    assert "lower --lr" in (results[1].error or "")
    assert (results[2].error or "").startswith("--last-k.k 99: the backbone has")
    printed = capfd.readouterr().err
    assert printed.count("error: ") == 2, "what would only fail again is not tried again"
    lines = [line.split() for line in printed.splitlines() if "/4 " in line]
    assert [line[0] for line in lines] == ["1/4", "2/4", "3/4", "4/4"]
    assert [line[2] for line in lines] == ["R@1", "failed:", "failed:", "R@1"]
    for result in results:
        if result.record:
            assert (result.record.id, result.record.seed) == (result.id, result.config.seed)
    again = run_all(configs[3:], RuntimeConfig(results=tmp_path))
    assert again == results[3:]
    assert "already recorded" in capfd.readouterr().err


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_workers_make_the_bits_of_one_process_and_keep_logs(
    engine: Any, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """With a weight file and flags of the runtime; Ray's machine shares no disk, so that all is sent back."""
    from safetensors.torch import save_file
    from timm import create_model

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    save_file(create_model("resnet10t", num_classes=0).state_dict(), tmp_path / "w.safetensors")
    config = replace(QUICK.changed(model__weights=str(tmp_path / "w.safetensors")), strategy="standard")
    alone = run(config, RuntimeConfig(results=tmp_path / "alone"))
    runtime = RuntimeConfig(results=tmp_path / "workers", checkpoint_every=0, keep=True)
    if engine == "ray":
        request.getfixturevalue("ray")
        results = run_all([config, TOO_DEEP], runtime, Workers("ray", collect=True))
        left = [path for path in (own_cache / "collected").rglob("*") if path.is_file() and path.suffix != ".lock"]
        assert not left, "the machine that made them keeps none"
    else:
        results = run_all([config, TOO_DEEP], runtime, isolate=True)
    assert results[0].record is not None, results[0].error
    assert (results[0].id, results[0].record.metrics) == (alone.id, alone.metrics)
    folder = ResultsFolder(runtime.results)
    assert folder.model(alone.id).with_name(f"{alone.id}.safetensors").exists()
    log = folder.log(alone.id).read_text()
    assert "--checkpoint-every 0" in log.splitlines()[0]
    assert log.count(": R@1 ") == 1
    assert f"error: {results[1].error}" in folder.log(results[1].id).read_text()
    assert (results[1].error or "").startswith("--last-k.k 99")


@pytest.mark.parametrize(("failures", "retries"), [(1, 1), (2, 1), (1, 0)])
def test_a_run_that_breaks_down_is_retried_so_often(
    failures: int, retries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[RunConfig] = []

    def breaks(config: RunConfig, runtime: RuntimeConfig, wait: bool) -> Record:
        tried.append(config)
        if len(tried) <= failures:
            raise RuntimeError("shapes do not match\nand more")
        return run(config, runtime, wait=wait)

    monkeypatch.setattr(worker, "run", breaks)
    (result,) = run_all([QUICK], RuntimeConfig(results=tmp_path), Workers(retries=retries))
    fails = failures > retries
    assert (result.record is None, result.error) == (fails, "RuntimeError: shapes do not match" if fails else None)
    assert len(tried) == min(failures, retries) + 1


def test_a_crash_counts_as_an_attempt_and_a_lost_task_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash, lost, done = ChildProcessError("killed"), ConnectionError("the node died\nand more"), Outcome(is_final=True)
    for answers, error in (
        ((crash, crash), "ChildProcessError: killed"),
        ((lost,), "ConnectionError: the node died"),
        ((crash, done), f"no record in {tmp_path}/runs"),
    ):
        pool = Answers(*answers)
        monkeypatch.setattr(Workers, "pool", lambda *_, pool=pool: pool)
        (result,) = run_all([QUICK], RuntimeConfig(results=tmp_path))
        assert (result.error or "").startswith(error)
        assert not pool.answers


def test_a_run_of_another_driver_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are made first, and a record that has come meanwhile is taken."""
    monkeypatch.setattr(workers, "POLL", 0.01)
    results, configs = ResultsFolder(tmp_path), [QUICK, replace(QUICK, seed=1)]
    names = [result.id for result in run_all(configs, RuntimeConfig(results=tmp_path / "other"))]
    runtime = Workers().settle(RuntimeConfig(results=tmp_path))
    ended = attempts(dict(zip(names, map(flatten, configs), strict=True)), runtime, Workers(), None)
    with results.lock(names[0]):
        made = [next(ended)[0]]
        record = results.record(names[0])
        record.write_text((tmp_path / "other" / "runs" / record.name).read_text())
    made += [name for name, _ in ended]
    assert made == names[::-1]


def test_two_drivers_on_one_results_folder_make_every_run_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    configs = [replace(config, seed=seed) for config in (QUICK, LONG) for seed in (0, 1)]
    drivers = [threading.Thread(target=run_all, args=(configs, RuntimeConfig(results=tmp_path))) for _ in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    printed = capfd.readouterr().err
    for record in ResultsFolder(tmp_path).read_records():
        made = Counter(
            "already" in line
            for line in printed.splitlines()
            if f"recorded in {tmp_path}" in line and record.id in line
        )
        assert made[False] == 1, printed
    assert len(list((tmp_path / "runs").iterdir())) == 4


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


@pytest.mark.slow
@pytest.mark.parametrize("retries", [0, 1])
def test_a_killed_worker_costs_its_run_an_attempt(retries: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def kill() -> None:
        wait_until(lambda: list(tmp_path.glob("checkpoints/*/epoch-*")))
        threads = Path(f"/proc/{os.getpid()}/task").glob("*/children")  # each names the children of a thread
        os.kill(int(" ".join(thread.read_text() for thread in threads).split()[-1]), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    config = LONG.changed(train__epochs=12)
    (result,) = run_all([config], RuntimeConfig(results=tmp_path), Workers(retries=retries), isolate=True)
    killer.join()
    assert result.error == (None if retries else "ChildProcessError: its process ended: killed by SIGKILL")
    if result.record is not None:
        assert "resum" in ResultsFolder(tmp_path).log(result.id).read_text(), "it resumes from the checkpoint"
