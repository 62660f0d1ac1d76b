"""Ray: results, failures, stopping, and machines that are lost, with jobs that are quick; one real run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from retrieval_bench.config import RuntimeConfig
from retrieval_bench.errors import UserError
from retrieval_bench.experiments import ray_tasks
from retrieval_bench.experiments.workers import Workers, run_all
from retrieval_bench.records import ResultsFolder
from retrieval_bench.run import run
from tests.experiments.helpers import QUICK, TOO_DEEP
from tests.experiments.ray_functions import fail_on_two, sleep, small_ray
from tests.experiments.test_workers import wait_until

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    with small_ray() as started:
        yield started


def test_tasks_end_with_their_results_and_as_many_threads_as_cores(ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with closing(ray_tasks.make({str(number): () for number in range(4)}, fail_on_two, 0.5, 0, "")) as made:
        results = dict(made)
    assert isinstance(results.pop("2"), KeyError)
    assert results == dict.fromkeys(("0", "1", "3"), "1 1")
    with closing(ray_tasks.make({"0": ()}, fail_on_two, 2, 0, "")) as made:
        assert dict(made) == {"0": "2 2"}
    assert [ray_tasks.width(cpus, 0, "") for cpus in (0.5, 1, 2, 3)] == [4, 2, 1, 0]
    assert ray_tasks.width(1, 0.5, "") == 0


def test_whoever_stops_listening_stops_the_tasks(ray: Any, tmp_path: Path) -> None:
    jobs = {str(number): (str(tmp_path), 60 if number else 0) for number in range(6)}
    with closing(ray_tasks.make(jobs, sleep, 1, 0, "")) as made:
        assert next(made)[0] == "0"
        wait_until(lambda: len(list(tmp_path.glob("begun-*"))) == 3)
    stopped = {path.name for path in tmp_path.glob("stopped-*")}
    assert stopped == {"stopped-1", "stopped-2"}, "they were waited for"
    assert (tmp_path / "ended").read_text() == "0\n"
    assert len(list(tmp_path.glob("begun-*"))) == 3


def test_a_run_has_the_bits_of_one_without_ray_and_is_sent_back(
    ray: Any, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its results folder is not shared, so record, log and embedder are sent back."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone = run(QUICK, RuntimeConfig(results=tmp_path / "alone"))
    runtime = RuntimeConfig(results=tmp_path / "ray", keep=True)
    results = run_all([QUICK, TOO_DEEP], runtime, Workers("ray", collect=True))
    assert results[0].record is not None, results[0].error
    assert (results[0].id, results[0].record.metrics) == (alone.id, alone.metrics)
    folder = ResultsFolder(runtime.results)
    assert folder.model(alone.id).with_name(f"{alone.id}.safetensors").exists()
    assert "recorded in" in folder.log(alone.id).read_text()
    assert (results[1].error or "").startswith("--last-k.k 99")
    assert (results[1].error or "") in folder.log(results[1].id).read_text()
    left = [path for path in (own_cache / "collected").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert not left, "the machine that made them keeps none"


def test_a_task_that_is_lost_is_a_failure_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_tasks, "width", lambda *_: 1)
    monkeypatch.setattr(
        ray_tasks, "make", lambda jobs, *_: ((name, ConnectionError("the node died\nand more")) for name in jobs)
    )
    (result,) = run_all([QUICK], RuntimeConfig(results=tmp_path), Workers("ray"))
    assert result.error == "ConnectionError: the node died"
    monkeypatch.setattr(ray_tasks, "make", lambda jobs, *_: ((name, (None, 1.0, {})) for name in jobs))
    (result,) = run_all([QUICK], RuntimeConfig(results=tmp_path), Workers("ray"))
    assert "is the results folder shared?" in (result.error or "")


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


def test_no_cluster_at_the_address_is_one_line() -> None:
    import ray

    ray.shutdown()
    with pytest.raises(UserError, match=r"--ray-address 127\.0\.0\.1:1: no Ray cluster"):
        ray_tasks.width(1, 0, "127.0.0.1:1")
