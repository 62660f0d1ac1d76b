"""Functions for other processes, which import nothing that is slow."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from retrieval_bench.experiments.processes import Processes


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def add(one: int, other: int) -> int:
    return one + other


def die(code: int) -> None:
    """Ends its process with this code, or by the signal of a negative one."""
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)


def sleep(name: str, folder: str, seconds: float) -> str:
    """Sleeps, and writes down its process at the beginning, and its end; Ctrl-C stops it."""
    Path(folder, f"begun-{name}").write_text(str(os.getpid()))
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.02)  # Ray's cancelling interrupts no longer sleep
    except KeyboardInterrupt:
        Path(folder, f"stopped-{name}").touch()
        raise
    return name


def threads() -> str:
    import torch

    return f"{torch.get_num_threads()} {os.environ['OMP_NUM_THREADS']}"


def drive(folder: str) -> None:
    """A driver that is killed while a process of its pool is at work."""
    with Processes([{}]) as pool:
        pool.submit(sleep, "0", folder, 100)
        wait_until(lambda: list(Path(folder).glob("begun-*")))
        os.kill(os.getpid(), signal.SIGKILL)
