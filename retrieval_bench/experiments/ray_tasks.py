"""Ray: tasks with processor cores, or fractions of a GPU, on as many machines as there are."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from typing import Any, Literal

import torch

from retrieval_bench.errors import UserError, first_line
from retrieval_bench.experiments.processes import GRACE
from retrieval_bench.progress import logger

LOSSES = 5
"""How often a task may lose its worker or its machine before it counts as failed. It resumes from its checkpoint
elsewhere."""
ANSWER = 10
"""Seconds that a cluster has to answer."""
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # tasks without a GPU keep their environment
    "RAY_worker_niceness": "0",  # tasks are what the machine is for
}
"""Environment of a Ray that is started here, where the user says nothing else."""


def device(cpus: float, gpus: float, requested: str) -> Literal["cpu", "cuda"]:
    """The device of tasks with these resources, for ``--device`` as requested.

    Raises:
        UserError: resources that cannot be, a GPU without a share of one, or no Ray.
    """
    if cpus < 0 or gpus < 0 or not cpus + gpus:
        raise UserError(f"--cpus-per-run {cpus:g} --gpus-per-run {gpus:g}: must not be negative, nor both 0")
    if importlib.util.find_spec("ray") is None:
        raise UserError('--engine ray needs Ray: pip install "retrieval_bench[ray]"')
    if requested == "cuda" and not gpus:
        raise UserError("--device cuda: say how much of a GPU each run has, with --gpus-per-run 1")
    return "cuda" if gpus and requested != "cpu" else "cpu"


def width(cpus: float, gpus: float, address: str) -> int:
    """How many tasks with these resources fit into the cluster."""
    import ray

    connect(cpus, gpus, address)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needed = {name: count for name, count in (("CPU", cpus), ("GPU", gpus)) if count}
    return sum(int(min(node.get(name, 0) / count for name, count in needed.items())) for node in nodes)


class RayTasks(Executor):
    """Calls functions as tasks with these resources as they become free. Ray itself starts tasks again that lose their
    machine."""

    def __init__(self, cpus: float, gpus: float, address: str):
        import ray

        if not width(cpus, gpus, address):
            logger.info(
                f"no machine of the cluster has {cpus:g} processor cores and {gpus:g} GPUs to give: waiting for one"
            )
        threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, int(cpus)))

        def task(function: Callable[..., Any], *arguments: Any) -> Any:
            os.environ["OMP_NUM_THREADS"] = str(threads)
            torch.set_num_threads(threads)
            return function(*arguments)

        self._task: Any = ray.remote(task).options(num_cpus=cpus, num_gpus=gpus, max_retries=LOSSES)
        self._running: dict[Future[Any], Any] = {}

    def submit(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, function: Callable[..., Any], /, *arguments: Any
    ) -> Future[Any]:
        reference = self._task.remote(function, *arguments)
        future = reference.future()
        self._running[future] = reference
        future.add_done_callback(self._running.pop)
        return future

    def __exit__(self, *_: object) -> None:
        """Interrupts what is under way, and waits until it has ended."""
        import ray

        running = dict(self._running)
        for reference in running.values():
            ray.cancel(reference)
        wait(running, timeout=GRACE)


def connect(cpus: float, gpus: float, address: str) -> None:
    """Joins the cluster, or starts a Ray that ends with this process; one that this process has begun already is used
    as it is.

    Raises:
        UserError: there is no cluster at the address, or a Ray of its own has too little for one task.
    """
    import ray

    if ray.is_initialized():
        return
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    dashboard = False if address == "local" else None
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        host, colon, port = address.rpartition(":")
        if colon and "/" not in host:  # Ray itself would take minutes to find out that nobody answers
            socket.create_connection((host, int(port)), timeout=ANSWER).close()
        ray.init(address, include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError) as error:
        raise UserError(f"--ray-address {address}: no Ray cluster answers there ({first_line(error)})") from None
    if threading.current_thread() is threading.main_thread():  # Ray puts its own in their place
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if address == "local" and not width(cpus, gpus, address):
        cores, cards = (ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU"))
        raise UserError(
            f"--cpus-per-run {cpus:g} --gpus-per-run {gpus:g}: this machine has {cores:g} cores and {cards:g} GPUs"
        )
