"""Ways to do the same work, timed in turn in one process, so that a slower moment of the machine meets all of them."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import tyro

from retrieval_bench.errors import UserError


def timed(
    ways: Mapping[str, Callable[[], object]], rounds: int, device: str, warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds of each way, once per round, after rounds that warm up and are not counted."""
    if rounds < 1:
        raise UserError(f"--rounds {rounds}: must be at least 1")
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + warm_up):
        for name, way in ways.items():
            synchronize()
            started = time.perf_counter()
            way()
            synchronize()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def report(timings: Mapping[str, list[float]], device: str, images: int = 0) -> str:
    """Medians as a table, with their ratio to the first, and images per second if each round is so many."""
    rate = f"{'images/s':>10}" if images else ""
    lines = [f"{'':44}{'seconds':>9}{'(fastest, slowest)':>20}{'ratio':>8}{rate}"]
    medians = {name: statistics.median(taken) for name, taken in timings.items()}
    first = next(iter(medians.values()))
    for name, median in medians.items():
        spread = f"({min(timings[name]):.3f}, {max(timings[name]):.3f})"
        rate = f"{images / median:>10,.1f}" if images else ""
        lines.append(f"{name:44}{median:>9.3f}{spread:>20}{median / first:>8.2f}{rate}")
    return "\n".join([*lines, f"{device}, {torch.get_num_threads()} threads"])


def command_line(main: Callable[..., Any]) -> None:
    """Calls `main` with the flags that its parameters name; a UserError is one line and exit code 2."""
    try:
        tyro.cli(main)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
