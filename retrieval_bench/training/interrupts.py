"""Ctrl-C and SIGTERM wait for the end of a step, when what they leave behind is whole."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from retrieval_bench.progress import logger

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """A signal that has come and is not delivered yet.

    Attributes:
        came: whether there is one.
    """

    def __init__(self) -> None:
        self.came = False
        self._process = os.getpid()
        self._given: tuple[Any, int] | None = None

    def note(self, number: int, handler: Any) -> None:
        """Takes in a signal that `handler` would have met; the second is delivered at once."""
        if os.getpid() != self._process:  # a process that decodes images, which its parent ends
            return
        if self.came:
            self.deliver()
        self.came, self._given = True, (handler, number)
        logger.info("stopping after this step (once more: at once)")

    def deliver(self) -> None:
        """Calls the handler, which raises."""
        assert self._given is not None
        handler, number = self._given
        handler(number, None)


@contextmanager
def deferred() -> Iterator[Interrupt]:
    """A block in which the first SIGINT or SIGTERM is only noted, where a Python handler would raise; elsewhere nothing changes."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))}
    for number, handler in before.items():
        signal.signal(number, lambda number, _, handler=handler: interrupt.note(number, handler))
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
