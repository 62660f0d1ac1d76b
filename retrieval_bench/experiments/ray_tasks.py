"""Ray: tasks with processor cores, or fractions of a GPU, on as many machines as there are."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import as_completed, wait
from typing import Any, Literal

import torch

from retrieval_bench.errors import UserError, first_line
from retrieval_bench.progress import logger

LOSSES = 5
"""How often a task may lose its worker or its machine before it counts as failed. It resumes from its checkpoint
elsewhere."""
GRACE = 60
"""Seconds that tasks have to end when they are stopped."""
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


def make(
    jobs: Mapping[str, tuple[Any, ...]], function: Callable[..., Any], cpus: float, gpus: float, address: str
) -> Generator[tuple[str, Any]]:
    """Calls ``function(name, *arguments)`` for each job as resources become free, and yields its name with what it
    returned, or the exception that it raised. Whoever stops listening stops the tasks, and waits for them."""
    import ray

    if not width(cpus, gpus, address):
        logger.info(
            f"no machine of the cluster has {cpus:g} processor cores and {gpus:g} GPUs to give: waiting for one"
        )
    task: Any = ray.remote(_task).options(num_cpus=cpus, num_gpus=gpus, max_retries=LOSSES)
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, int(cpus)))
    references: dict[str, Any] = {
        name: task.remote(function, threads, name, *arguments) for name, arguments in jobs.items()
    }
    futures = {reference.future(): name for name, reference in references.items()}
    try:
        for future in as_completed(futures):
            name = futures.pop(future)
            del references[name]
            error = future.exception()
            yield name, getattr(error, "cause", None) or error or future.result()
    finally:
        for reference in references.values():
            ray.cancel(reference)
        wait(futures, timeout=GRACE)


def _task(function: Callable[..., Any], threads: int, *arguments: Any) -> Any:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    return function(*arguments)


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
    _check_address(address)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(
            address,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError) as error:
        raise UserError(f"--ray-address {address}: no Ray cluster answers there ({first_line(error)})") from None
    if threading.current_thread() is threading.main_thread():  # Ray puts its own in their place
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if address == "local" and not width(cpus, gpus, address):
        cores, cards = (ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU"))
        raise UserError(
            f"--cpus-per-run {cpus:g} --gpus-per-run {gpus:g}: this machine has {cores:g} cores and {cards:g} GPUs"
        )


def _check_address(address: str) -> None:
    """Raises :class:`UserError` if nobody answers at HOST:PORT, which Ray itself would take minutes to find out."""
    host, colon, port = address.rpartition(":")
    if not colon or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER).close()
    except (OSError, ValueError) as error:
        raise UserError(f"--ray-address {address}: no Ray cluster answers there ({first_line(error)})") from None
