"""What the user sees while waiting: one line per step, and bars with rate and time left."""

from __future__ import annotations

import codecs
import io
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

Item = TypeVar("Item")


class _ToStderr(logging.Handler):
    """Writes each message as one line to whatever standard error is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        if is_main_process():
            print(record.getMessage(), file=sys.stderr, flush=True)


logger = logging.getLogger("retrieval_bench")
"""What is being done now, one line each, on standard error. Of the processes of one run (``torchrun``) only the first
one logs."""
if not logger.handlers:
    logger.addHandler(_ToStderr())
    logger.setLevel(logging.INFO)
    logger.propagate = False


@contextmanager
def quiet() -> Iterator[None]:
    """A block that logs nothing: what uses it says itself what is being done."""
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def replace_unknown_signs() -> None:
    """From now on standard output and error show ``+-`` for the plus-minus sign, plain lines for those of frames, and
    ``?`` for other signs that the terminal's encoding lacks, where an error would end the program."""
    codecs.register_error("replace_signs", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace_signs")


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    spelt = {"\xb1": "+-", **dict(zip("─━│╭╮╰╯", "--|++++", strict=True))}
    return "".join(spelt.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


@contextmanager
def download_bar(name: str, total: int, done: int) -> Iterator[Callable[[int], None]]:
    """A bar in bytes; yields the function that advances it. `total` 0 means unknown."""
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
    )
    with progress.Progress(*columns, progress.TimeRemainingColumn(), **bar_options()) as bar:
        task = bar.add_task(name, total=total or None, completed=done)
        yield lambda count: bar.advance(task, count)


def track(
    items: Iterable[Item],
    what: str,
    total: int,
    unit: str = "images",
    size: Callable[[Item], int] = lambda item: 1,
    left: Callable[[float], str] | None = None,
) -> Iterator[Item]:
    """Passes `items` on under a bar that shows ``done/total unit``, the rate and the time left.

    Args:
        items: anything iterable.
        what: text before the bar.
        total: sum of `size` over all items.
        unit: what is counted.
        size: how many units one item is.
        left: from the share of `total` that is done to the time left as text, where the command goes on after it.
    """
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TextColumn(f"{{task.completed:.0f}}/{{task.total:.0f}} {unit}"),
    )
    rate = progress.TextColumn("{task.fields[rate]}")
    remaining = progress.TextColumn("{task.fields[left]}") if left else progress.TimeRemainingColumn()
    with progress.Progress(*columns, rate, remaining, **bar_options()) as bar:
        task = bar.add_task(what, total=total, rate="", left="")
        for item in items:
            yield item
            bar.advance(task, size(item))
            speed = bar.tasks[0].speed
            text = left(bar.tasks[0].completed / max(total, 1)).lstrip(", ") if left and not bar.disable else ""
            bar.update(task, rate=f"{speed:.1f} {unit}/s" if speed else "", left=text)


_after: ContextVar[Callable[[float], float]] = ContextVar("after", default=lambda seconds: 0.0)


@contextmanager
def followed_by(rest: Callable[[float], float], done: float = 0.0) -> Iterator[None]:
    """A block that is one part of several, such as one run of a benchmark. `rest` gives the seconds that the parts
    after it will take, from those that this one takes in all; `done` are those of the parts before it."""
    outer = _after.get()

    def after(seconds: float) -> float:
        own = rest(seconds)
        return own + outer(done + seconds + own)

    token = _after.set(after)
    try:
        yield
    finally:
        _after.reset(token)


def time_left(seconds: float, share: float) -> str:
    """``, about 12 min left`` of the whole command, after `seconds` in which this `share` of the present part was done;
    nothing where that is unknown or less than a second."""
    whole = seconds / share if share else 0.0
    rest = whole - seconds + _after.get()(whole)
    return f", about {duration(rest)} left" if rest >= 1 else ""


def duration(seconds: float) -> str:
    """Seconds for people: ``45 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def is_main_process() -> bool:
    """Whether this process is the one of those that work together (``torchrun``) that logs and prints tables."""
    return os.environ.get("RANK", "0") == "0"


def bar_options() -> dict[str, Any]:
    """Bars go to standard error, vanish when done, and are not drawn where nobody watches (a file, a pipe)."""
    from rich.console import Console

    console = Console(stderr=True)
    return {"console": console, "transient": True, "disable": not (console.is_terminal and is_main_process())}
