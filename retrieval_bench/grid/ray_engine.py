"""Ray as an engine: tasks with processors, or fractions of a GPU, on as many machines as there are."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import as_completed, wait
from dataclasses import dataclass
from typing import Any

from retrieval_bench.errors import UserError, first_line
from retrieval_bench.grid.engines import Place, Work
from retrieval_bench.progress import logger

LOSSES = 5
"""How often a job may lose its worker or its machine before it counts as failed. It goes on from its checkpoint elsewhere."""
GRACE = 60
"""Seconds that jobs have to end when they are stopped."""
ANSWER = 10
"""Seconds that a cluster has to answer."""
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # jobs without a GPU keep their environment
    "RAY_worker_niceness": "0",  # jobs are what the machine is for
}
"""Environment of a Ray that is started here, where the user says nothing else."""


@dataclass(frozen=True)
class Ray:
    """Ray, joined or started when it is first needed; a Ray that this process has begun already is used as it is.

    Attributes:
        cpus: cores of each job, which are also its threads.
        gpus: GPUs of each job.
        address: of the cluster; without, that in RAY_ADDRESS, or a Ray of its own on this machine.
        shared: whether the results folder is the same on all machines.
    """

    cpus: float = 1
    gpus: float = 0
    address: str = ""
    shared: bool = True

    def __post_init__(self) -> None:
        if self.cpus < 0 or self.gpus < 0 or not self.cpus + self.gpus:
            raise UserError(
                f"--cpus-per-run {self.cpus:g} --gpus-per-run {self.gpus:g}: must not be negative, nor both 0"
            )
        if importlib.util.find_spec("ray") is None:
            raise UserError('--engine ray needs Ray: pip install "retrieval_bench[ray]"')

    def device(self, wanted: str) -> str:
        if wanted == "cuda" and not self.gpus:
            raise UserError("--device cuda: say how much of a GPU each run has, with --gpus-per-run 1")
        return "cuda" if self.gpus and wanted != "cpu" else "cpu"

    def width(self) -> int:
        import ray

        self.connect()
        free = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        wanted = {name: count for name, count in (("CPU", self.cpus), ("GPU", self.gpus)) if count}
        return sum(int(min(node.get(name, 0) / count for name, count in wanted.items())) for node in free)

    def carry_out(self, work: Work, jobs: Sequence[Any]) -> Generator[tuple[int, Any]]:
        import ray

        self.connect()
        if jobs and not self.width():
            logger.info(
                f"no machine of the cluster has {self.cpus:g} processor cores and {self.gpus:g} GPUs to give: waiting for one"
            )
        task = ray.remote(_carry_out).options(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=LOSSES)
        environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, int(self.cpus))))}
        tasks: list[Any] = [task.remote(work, job, environment) for job in jobs]
        futures = {reference.future(): number for number, reference in enumerate(tasks)}
        try:
            for future in as_completed(futures):
                number = futures.pop(future)
                tasks[number] = None
                error = future.exception()
                yield number, getattr(error, "cause", None) or error or future.result()
        finally:
            for reference in filter(None, tasks):
                ray.cancel(reference)
            wait(futures, timeout=GRACE)

    def connect(self) -> None:
        """Joins the cluster, or starts a Ray that ends with this process.

        Raises:
            UserError: there is no cluster at the address, or a Ray of its own has too little for one job.
        """
        import ray

        if ray.is_initialized():
            return
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        address = self.address or os.environ.get("RAY_ADDRESS") or "local"
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
        if address == "local" and not self.width():
            raise UserError(
                f"--cpus-per-run {self.cpus:g} --gpus-per-run {self.gpus:g}: this machine has {ray.cluster_resources().get('CPU', 0):g} "
                f"cores and {ray.cluster_resources().get('GPU', 0):g} GPUs"
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


def _carry_out(work: Work, job: Any, environment: Mapping[str, str]) -> Any:
    """One job, in a process of Ray's."""
    return work(job, Place(environment))
