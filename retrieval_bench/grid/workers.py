"""The flags that choose an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from retrieval_bench.errors import UserError

if TYPE_CHECKING:
    from retrieval_bench.grid.engines import Engine


@dataclass(frozen=True)
class Workers:
    """What carries out the runs."""

    engine: Literal["local", "ray"] = "local"
    """local: processes on this machine; ray: a cluster, or a Ray of its own on this machine (pip install "retrieval_bench[ray]")"""
    jobs: int = 0
    """local: runs at a time, which share the processor's threads; 0 for one per GPU, or one on a CPU"""
    cpus_per_run: float = 1
    """ray: processor cores, and threads, of each run"""
    gpus_per_run: float = 0
    """ray: GPUs of each run; 0.5 puts two runs on one"""
    ray_address: str = ""
    """ray: the cluster to join, such as auto on its head node or HOST:6379"""
    collect: bool = False
    """ray: the results folder is not shared by the machines: records and kept embedders are sent back and written here"""

    def start(self, device: str) -> Engine:
        """The engine. Raises :class:`UserError` for flags of the other one.

        Args:
            device: the machine's ``--device``.
        """
        if self.engine == "local":
            if (self.cpus_per_run, self.gpus_per_run, self.ray_address, self.collect) != (1, 0, "", False):
                raise UserError("--cpus-per-run, --gpus-per-run, --ray-address and --collect belong to --engine ray")
            from retrieval_bench.grid.engines import local_engine

            return local_engine(self.jobs, device)
        if self.jobs:
            raise UserError(
                "--jobs belongs to --engine local; Ray fits in as many runs as --cpus-per-run and --gpus-per-run allow"
            )
        from retrieval_bench.grid.ray_engine import Ray

        return Ray(self.cpus_per_run, self.gpus_per_run, self.ray_address, not self.collect)
