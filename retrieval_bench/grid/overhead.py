"""What an engine takes beside the jobs: ``python -m retrieval_bench.grid.overhead --engine ray --jobs 10 --seconds 60``.

Jobs only sleep, so that nothing but the engine is measured: the wall time from the first job to the last, with the time to start Ray told
apart, against the time that the jobs slept on the places that there are. The memory is the driver's, after a tenth of the jobs and after
all of them.
"""

from __future__ import annotations

import os
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from retrieval_bench.errors import UserError
from retrieval_bench.grid.engines import Engine, Local, Place
from retrieval_bench.grid.ray_engine import Ray


def nap(seconds: float, place: Place) -> float:
    """A job that sleeps; how long it slept."""
    started = time.perf_counter()
    place.stop.wait(seconds)
    return time.perf_counter() - started


@dataclass(frozen=True)
class Overhead:
    """Measure what an engine takes beside the jobs."""

    engine: Literal["local", "ray"] = "ray"
    """the engine"""
    jobs: int = 10
    """how many; best a multiple of the places"""
    seconds: float = 60
    """that each sleeps"""
    places: int = 2
    """jobs at a time; Ray is started with so many cores"""

    def execute(self) -> None:
        if self.jobs < 1 or self.places < 1 or not self.seconds > 0:
            raise UserError("--jobs and --places must be at least 1, --seconds above 0")
        started = time.perf_counter()
        engine = self._start()
        begun = time.perf_counter()
        slept, memory = [], []
        with closing(engine.carry_out(nap, [self.seconds] * self.jobs)) as ended:
            for _, seconds in ended:
                slept.append(seconds)
                if len(slept) in (max(1, self.jobs // 10), self.jobs):
                    memory.append(f"{memory_mb():.0f} MB after {len(slept)}")
        wall = time.perf_counter() - begun
        ideal = sum(slept) / self.places
        print(
            f"{self.engine}: {self.jobs} jobs of {self.seconds:g} s, {self.places} at a time; starting took {begun - started:.1f} s"
        )
        print(f"wall {wall:.2f} s, jobs alone {ideal:.2f} s: {100 * (wall / ideal - 1):.2f} % more")
        print(f"with the start {100 * ((wall + begun - started) / ideal - 1):.2f} % more")
        print(f"memory of the driver: {', '.join(memory)}")

    def _start(self) -> Engine:
        if self.engine == "local":
            return Local(self.places)
        import ray

        ray.init(num_cpus=self.places, include_dashboard=False, log_to_driver=False)
        return Ray()


def memory_mb() -> float:
    """Resident memory of this process, 10^6 bytes (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    tyro.cli(Overhead, description=__doc__).execute()
