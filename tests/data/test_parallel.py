from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from retrieval_bench.data.parallel import in_threads


def test_results_come_in_order_whichever_is_first_done() -> None:
    count = 6
    done = [threading.Event() for _ in range(count + 1)]

    def work(number: int) -> int:
        if number % 2 == 0 and number + 1 < count and (os.cpu_count() or 1) > 1:
            done[number + 1].wait(5)  # the next one ends first
        done[number].set()
        return number * number

    assert list(in_threads(work, range(count), "working", count)) == [0, 1, 4, 9, 16, 25]


def test_no_items_are_no_results() -> None:
    assert list(in_threads(str, [], "working", 0)) == []


def test_items_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10_000):
            taken.append(number)
            yield number

    results = in_threads(lambda number: number, items(), "working", 10_000)
    assert taken == []
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert len(taken) < 10 + 8 * (os.cpu_count() or 1)
    results.close()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_first_error_in_order_is_raised_and_the_rest_is_not_begun(error: BaseException) -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number in (3, 4):
            raise error if number == 3 else OSError("a later one")
        return number

    results = in_threads(work, range(10_000), "working", 10_000)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(type(error)):
        next(results)
    assert len(begun) < 10 + 8 * (os.cpu_count() or 1)


def test_no_thread_is_left_when_the_caller_leaves() -> None:
    before = threading.active_count()
    results = in_threads(lambda number: number, range(1_000), "working", 1_000)
    next(results)
    results.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert threading.active_count() == before


def test_leaving_from_another_thread_does_not_wait_for_what_is_under_way() -> None:
    """The garbage collector may be who leaves, in any thread, even one that is being started: joining threads there is a deadlock."""
    begun, go_on = threading.Event(), threading.Event()

    def work(number: int) -> int:
        if number:
            begun.set()
            go_on.wait(20)
        return number

    results = in_threads(work, range(4), "working", 4)
    assert next(results) == 0
    assert begun.wait(5)
    closing = threading.Thread(target=results.close, daemon=True)  # pyright: ignore[reportAttributeAccessIssue]
    closing.start()
    closing.join(5)
    left = not closing.is_alive()
    go_on.set()
    assert left
