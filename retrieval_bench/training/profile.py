"""Where the time of a training step goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


class Stopwatch:
    """Seconds per part of the work, by name.

    Args:
        on: whether it notes anything.
        wait: called before the clock is read, to wait for a device that works on its own.
    """

    def __init__(self, on: bool = False, wait: Callable[[], object] = lambda: None):
        self.on = on
        self.wait = wait
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """A block whose time counts as `part`'s."""
        if not self.on:
            yield
            return
        self.wait()
        started = time.perf_counter()
        try:
            yield
        finally:
            self.wait()
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started

    def each(self, items: Iterable[Item], part: str) -> Iterator[Item]:
        """Passes `items` on; the time that each is waited for counts as `part`'s."""
        waiting = iter(items)
        while True:
            with self(part):
                item = next(waiting, None)
            if item is None:
                return
            yield item

    def report(self, seconds: float, images: int) -> str:
        """A table of the parts in `seconds` of training on `images`."""
        rest = seconds - sum(self.seconds.values())
        lines = [
            f"{part:12}{taken:>9.2f} s{100 * taken / seconds:>7.1f} %"
            for part, taken in {**self.seconds, "the rest": rest}.items()
        ]
        return "\n".join([*lines, f"{'together':12}{seconds:>9.2f} s{images / seconds:>9,.0f} images/s"])
