"""What the user sees of a grid that is being carried out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from retrieval_bench.progress import bar_options, logger

if TYPE_CHECKING:
    from retrieval_bench.grid.call import Ended
    from retrieval_bench.grid.carry_out import Outcome


@contextmanager
def watch(total: int, width: Callable[[], int]) -> Iterator[Callable[[Outcome, Ended | Exception], None]]:
    """A bar with runs that go on, wait and failed, and the time left; yields what tells it of a run that has ended, which is also a line.

    Args:
        total: how many runs there are to make.
        width: how many go on at a time.
    """
    from rich import progress

    columns = (
        progress.TextColumn("runs"),
        progress.BarColumn(),
        progress.TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        progress.TextColumn("{task.fields[state]}"),
        progress.TimeElapsedColumn(),
        progress.TextColumn("{task.fields[left]}"),
    )
    started, done, failed = time.monotonic(), 0, 0

    def state() -> str:
        running = min(width(), total - done)
        return f"{running} running, {total - done - running} waiting, {failed} failed"

    with progress.Progress(*columns, **bar_options()) as bar:
        task = bar.add_task("runs", total=total, state=state() if total else "", left="")

        def show(outcome: Outcome, result: Ended | Exception) -> None:
            nonlocal done, failed
            done, failed = done + 1, failed + (outcome.error is not None)
            left = time_left(time.monotonic() - started, done, total)
            logger.info(
                f"{done}/{total} {outcome.id}: {_said(outcome, result)}{f' ({left})' if left and bar.disable else ''}"
            )
            bar.update(task, completed=done, state=state(), left=left)

        yield show


def time_left(seconds: float, done: int, total: int) -> str:
    """What the rest takes if it goes on as it went, in words; empty when all is done."""
    return f"about {duration(seconds / done * (total - done))} left" if done < total else ""


def duration(seconds: float) -> str:
    """Seconds for people: ``45 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _said(outcome: Outcome, result: Any) -> str:
    if outcome.record is None:
        return f"failed: {outcome.error}"
    return f"R@1 {100 * outcome.record['metrics'].get('recall_at_1', float('nan')):.2f}, {duration(result.seconds)}"
