"""Engines: what carries out many jobs. Each hands out places, and says in which order jobs have ended."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any, Protocol

from retrieval_bench.device import resolve_device
from retrieval_bench.errors import UserError


@dataclass(frozen=True)
class Place:
    """Where a job is carried out.

    Attributes:
        environment: variables for the processes of the job: its threads, its GPU.
        stop: is set when the job has to end.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)


Work = Callable[[Any, Place], Any]
"""Carries out one job; a function of a module, which other machines can import."""


class Engine(Protocol):
    """Carries out jobs.

    Attributes:
        shared: whether the results folder is the same wherever jobs are carried out.
    """

    @property
    def shared(self) -> bool: ...

    def device(self, wanted: str) -> str:
        """``cpu`` or ``cuda``, for ``auto`` too; raises :class:`UserError` for a device that there is not."""
        ...

    def width(self) -> int:
        """How many jobs go on at a time."""
        ...

    def carry_out(self, work: Work, jobs: Sequence[Any]) -> Generator[tuple[int, Any]]:
        """Begins all jobs in order, as places become free, and yields the number of each that has ended, with what came of it: what `work`
        returned, or the exception that it raised. Whoever stops listening stops the jobs, and waits for them.
        """
        ...


@dataclass(frozen=True)
class Local:
    """The processors or GPUs of this machine: one thread per place, which waits for the processes of its job.

    Attributes:
        jobs: how many jobs go on at a time; 0 for one on a CPU, one per GPU on GPUs.
        gpus: their numbers, as in CUDA_VISIBLE_DEVICES; empty on a CPU.
    """

    jobs: int = 0
    gpus: tuple[str, ...] = ()
    shared: bool = True

    def device(self, wanted: str) -> str:
        return resolve_device(wanted)

    def width(self) -> int:
        return self.jobs or len(self.gpus) or 1

    def carry_out(self, work: Work, jobs: Sequence[Any]) -> Generator[tuple[int, Any]]:
        stop, free = threading.Event(), queue.SimpleQueue()
        for environment in self.environments():
            free.put(Place(environment, stop))

        def one(job: Any) -> Any:
            place = free.get()
            try:
                return work(job, place)
            finally:
                free.put(place)

        with ThreadPoolExecutor(self.width()) as pool:
            futures = {pool.submit(one, job): number for number, job in enumerate(jobs)}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.exception() or future.result()
            finally:
                stop.set()
                for future in futures:
                    future.cancel()

    def environments(self) -> list[dict[str, str]]:
        """The variables of each place: its GPU, and its share of the processor's threads (which OMP_NUM_THREADS is where it is set)."""
        import torch

        alone = "OMP_NUM_THREADS" in os.environ or self.width() == 1
        threads = {} if alone else {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // self.width()))}
        gpus = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in self.gpus] or [{}]
        return [threads | gpus[number % len(gpus)] for number in range(self.width())]


def local_engine(jobs: int, device: str) -> Local:
    """The engine for this machine.

    Args:
        jobs: see :class:`Local`.
        device: ``auto``, ``cpu`` or ``cuda``.
    """
    import torch

    if jobs < 0:
        raise UserError(f"--jobs {jobs}: give a number of runs that go on at a time, or 0 for one per device")
    if resolve_device(device) == "cpu":
        return Local(jobs)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
    return Local(jobs, tuple(gpus))
