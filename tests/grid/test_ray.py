"""Ray as an engine: results, failures, stopping, and machines that are lost, with jobs that are quick; one real run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from retrieval_bench.config import RuntimeConfig
from retrieval_bench.errors import UserError
from retrieval_bench.grid.carry_out import carry_out
from retrieval_bench.grid.ray_engine import Ray
from retrieval_bench.run import run
from tests.grid.ray_jobs import fails_on_two, notes, small_ray
from tests.grid.test_carry_out import BASE

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    with small_ray() as started:
        yield started


def wait_until(come: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not come():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_jobs_end_with_what_came_of_them(ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with closing(Ray(cpus=0.5).carry_out(fails_on_two, range(6))) as ended:
        found = dict(ended)
    assert isinstance(found.pop(2), KeyError)
    assert found == {number: f"{number} 1" for number in (0, 1, 3, 4, 5)}
    with closing(Ray(cpus=2).carry_out(fails_on_two, [0])) as ended:
        assert dict(ended) == {0: "0 2"}, "as many threads as cores"


def test_width_is_what_fits(ray: Any) -> None:
    assert [Ray(cpus).width() for cpus in (0.5, 1, 2, 3)] == [4, 2, 1, 0]
    assert Ray(1, 0.5).width() == 0


def test_whoever_stops_listening_stops_the_jobs(ray: Any, tmp_path: Path) -> None:
    with closing(
        Ray().carry_out(
            notes, [(0, str(tmp_path), 0, ""), *((number, str(tmp_path), 60, "") for number in range(1, 6))]
        )
    ) as ended:
        assert next(ended)[0] == 0
        wait_until(lambda: len(list(tmp_path.glob("begun-*"))) == 3)
    assert {path.name for path in tmp_path.glob("stopped-*")} == {f"stopped-{number}" for number in (1, 2)}, (
        "they were waited for"
    )
    assert (tmp_path / "ended").read_text() == "0\n"
    assert len(list(tmp_path.glob("begun-*"))) == 3


def test_a_real_run_has_the_bits_of_one_without_ray(ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its results folder is not shared, so record and embedder are sent back."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone = run(BASE, RuntimeConfig(results=tmp_path / "alone"))
    (outcome,) = carry_out([BASE], RuntimeConfig(results=tmp_path / "ray", keep=True), Ray(shared=False))
    assert outcome.record is not None, outcome.error
    assert outcome.id == alone["id"]
    assert outcome.record["metrics"] == alone["metrics"]
    assert (tmp_path / "ray" / "models" / f"{outcome.id}.safetensors").exists()
    assert "recorded in" in (tmp_path / "ray" / "logs" / f"{outcome.id}.log").read_text()


def test_devices_follow_from_shares_of_gpus() -> None:
    assert [Ray().device(wanted) for wanted in ("auto", "cpu")] == ["cpu", "cpu"]
    assert [Ray(1, 0.5).device(wanted) for wanted in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    with pytest.raises(UserError, match="--gpus-per-run 1"):
        Ray().device("cuda")
    for cpus, gpus in ((-1, 1), (0, 0)):
        with pytest.raises(UserError, match="--cpus-per-run"):
            Ray(cpus, gpus)


def test_without_ray_a_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"retrieval_bench\[ray\]"):
        Ray()


@pytest.mark.slow
def test_jobs_of_a_machine_that_is_lost_are_begun_again_elsewhere(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        victim = cluster.add_node(num_cpus=1)
        with small_ray(address=cluster.address) as ray:
            wait_until(lambda: Ray().width() == 2)
            jobs = [(number, str(tmp_path), 0.5, victim.node_id) for number in range(6)]
            with closing(Ray().carry_out(notes, jobs)) as ended:
                found = [next(ended)]
                wait_until(lambda: list(tmp_path.glob(f"begun-*-{victim.node_id}")))
                cluster.remove_node(victim, allow_graceful=False)
                found += list(ended)
            assert ray.is_initialized()
    finally:
        cluster.shutdown()
    assert {number for number, _ in found} == set(range(6)), "all of them"
    assert len(found) == 6, "each once"
    assert sorted(map(int, (tmp_path / "ended").read_text().split())) == list(range(6)), "none ended twice"
    assert len({node for _, node in found}) == 1 < len(list(tmp_path.glob("begun-*"))) - 5, (
        "one was begun on each of two machines"
    )


def test_no_cluster_at_the_address_is_one_line() -> None:
    import ray

    ray.shutdown()
    with pytest.raises(UserError, match=r"--ray-address 127\.0\.0\.1:1: no Ray cluster"):
        Ray(address="127.0.0.1:1").width()
    assert "RAY_ADDRESS" not in os.environ
