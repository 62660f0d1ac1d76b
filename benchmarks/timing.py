"""Ways to do the same work, timed in turn in one process, so that a slower moment of the machine meets all of them."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import tyro

from retrieval_bench.errors import UserError


@dataclass(frozen=True)
class Timing:
    """Seconds of one way for one round: median, fastest, slowest."""

    name: str
    median: float
    low: float
    high: float


def timed(ways: Mapping[str, Callable[[], object]], rounds: int, device: str, warm_up: int = 2) -> list[Timing]:
    """Each way once per round, after rounds that warm up and are not counted."""
    if rounds < 1:
        raise UserError(f"--rounds {rounds}: must be at least 1")
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


def report(timings: list[Timing], device: str, images: int = 0) -> str:
    """The timings as a table, with their ratio to the first, and images per second if each round is so many."""
    rate = f"{'images/s':>10}" if images else ""
    lines = [f"{'':44}{'seconds':>9}{'(fastest, slowest)':>20}{'ratio':>8}{rate}"]
    for timing in timings:
        spread, ratio = f"({timing.low:.3f}, {timing.high:.3f})", timing.median / timings[0].median
        rate = f"{images / timing.median:>10,.1f}" if images else ""
        lines.append(f"{timing.name:44}{timing.median:>9.3f}{spread:>20}{ratio:>8.2f}{rate}")
    return "\n".join([*lines, f"{device}, {torch.get_num_threads()} threads"])


def command_line(main: Callable[..., Any]) -> None:
    """Calls `main` with the flags that its parameters name; a UserError is one line and exit code 2."""
    try:
        tyro.cli(main)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
