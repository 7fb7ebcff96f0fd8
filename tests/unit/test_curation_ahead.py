"""Threads ahead of a consumer: in order, bounded, and gone when it goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from altdiffusion.curation.ahead import ahead


def slow_square(number: int) -> int:
    time.sleep(0.002 * (number % 3))  # later items may be done sooner
    return number**2


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("depth", [1, 4, 100])
def test_results_come_in_order(threads: int, depth: int) -> None:
    assert list(ahead(slow_square, range(20), threads=threads, depth=depth)) == [n**2 for n in range(20)]
    assert list(ahead(slow_square, [], threads=threads, depth=depth)) == []


def test_it_is_never_further_ahead_than_its_depth() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(50):
            taken += 1
            yield number

    for done, _ in enumerate(ahead(slow_square, items(), threads=2, depth=5), 1):
        assert taken <= done + 5


def test_an_error_comes_in_its_place_and_what_has_not_begun_is_dropped() -> None:
    begun = []

    def fail_at_three(number: int) -> int:
        begun.append(number)
        time.sleep(0.01)
        if number == 3:
            raise KeyError("three")
        return number

    results = ahead(fail_at_three, range(100), threads=1, depth=10)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="three"):
        next(results)
    assert len(begun) < 10


def test_no_thread_is_left_when_the_consumer_stops_early() -> None:
    results = ahead(slow_square, range(100), threads=3, depth=10)
    next(results)
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
