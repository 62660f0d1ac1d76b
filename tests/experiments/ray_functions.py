"""Functions for Ray's processes, which must be able to import them, and a started Ray of two cores."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retrieval_bench.experiments.ray_tasks import SETTINGS

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


def fail_on_two(name: str) -> str:
    """Returns its threads; the job 2 fails."""
    import torch

    if name == "2":
        raise KeyError("two")
    return f"{torch.get_num_threads()} {os.environ['OMP_NUM_THREADS']}"


def sleep(name: str, folder: str, seconds: float) -> None:
    """Sleeps, and writes down its beginning and its end."""
    (Path(folder) / f"begun-{name}").touch()
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.02)  # Ray's cancelling interrupts no longer sleep
    except KeyboardInterrupt:
        (Path(folder) / f"stopped-{name}").touch()
        raise
    with (Path(folder) / "ended").open("a") as stream:
        stream.write(f"{name}\n")
