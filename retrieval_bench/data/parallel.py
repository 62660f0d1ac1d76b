"""Work on many images in threads (PIL and file reads leave Python's lock), with a bar, in order, and without a queue that grows."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from retrieval_bench.progress import track

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], what: str, total: int
) -> Generator[Result, None, None]:
    """Yields ``work(item)`` for each item in order; the first exception, or the caller's leaving, cancels what has not begun.

    Args:
        work: called in one of as many threads as there are cores.
        items: its arguments.
        what: text before the bar.
        total: number of items.
    """
    threads = os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads)

    def results() -> Iterator[Result]:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= 4 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    caller, wait = threading.get_ident(), True
    try:
        yield from track(results(), what, total)
    except (
        GeneratorExit
    ):  # the garbage collector may be who leaves, in a thread that is being started: joining there is a deadlock
        wait = threading.get_ident() == caller
        raise
    finally:
        pool.shutdown(wait=wait, cancel_futures=True)
