"""Ways to do the same work, timed in turn in one process, so that a slower moment of the machine meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

WARM_UP = 2


@dataclass(frozen=True)
class Timing:
    """Seconds of one way for one round: median, fastest, slowest."""

    name: str
    median: float
    low: float
    high: float


def timed(ways: dict[str, Callable[[], object]], rounds: int, device: str, warm_up: int = WARM_UP) -> list[Timing]:
    """Each way once per round, after rounds that warm up and are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + warm_up):
        for name, way in ways.items():
            _wait(device)
            started = time.perf_counter()
            way()
            _wait(device)
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return [Timing(name, statistics.median(taken), min(taken), max(taken)) for name, taken in seconds.items()]


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def report(timings: list[Timing], images: int = 0) -> str:
    """The timings as a table, with their ratio to the first, and images per second if each round is so many."""
    rate = f"{'images/s':>10}" if images else ""
    lines = [f"{'':44}{'seconds':>9}{'(fastest, slowest)':>20}{'ratio':>8}{rate}"]
    for timing in timings:
        spread = f"({timing.low:.3f}, {timing.high:.3f})"
        rate = f"{images / timing.median:>10,.1f}" if images else ""
        lines.append(
            f"{timing.name:44}{timing.median:>9.3f}{spread:>20}{timing.median / timings[0].median:>8.2f}{rate}"
        )
    return "\n".join(lines)
