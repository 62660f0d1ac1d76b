"""Jobs for Ray's processes, which must be able to import them, and a started Ray of two cores."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retrieval_bench.grid.engines import Place
from retrieval_bench.grid.ray_engine import SETTINGS

os.environ.update(SETTINGS)


@contextmanager
def small_ray(**options: Any) -> Iterator[Any]:
    """Ray with two cores, or as `options` say; ended afterwards."""
    import ray
    from ray import cloudpickle

    here = sys.modules[__name__]
    ray.shutdown()
    ray.init(**(options or {"num_cpus": 2, "include_dashboard": False}), log_to_driver=False, logging_level=40)
    cloudpickle.register_pickle_by_value(here)
    try:
        yield ray
    finally:
        ray.shutdown()


def fails_on_two(job: int, place: Place) -> str:
    """Tells its threads; the job 2 fails."""
    if job == 2:
        raise KeyError("two")
    return f"{job} {place.environment['OMP_NUM_THREADS']}"


def notes(job: tuple[int, str, float, str], place: Place) -> str:
    """Sleeps, and notes its beginning and its end; on which node. On the node that is named it sleeps for good."""
    import ray

    number, folder, seconds, slow = job
    node = ray.get_runtime_context().get_node_id()
    (Path(folder) / f"begun-{number}-{node}").touch()
    try:
        end = time.monotonic() + (600 if node == slow else seconds)
        while time.monotonic() < end:
            time.sleep(0.02)  # Ray's cancelling interrupts no longer sleep
    except KeyboardInterrupt:
        (Path(folder) / f"stopped-{number}").touch()
        raise
    with (Path(folder) / "ended").open("a") as stream:
        stream.write(f"{number}\n")
    return node
