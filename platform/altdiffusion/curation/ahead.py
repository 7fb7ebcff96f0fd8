"""Threads that work ahead of their consumer: in order, and never further than a set depth."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(function: Callable[[T], R], items: Iterable[T], *, threads: int, depth: int) -> Iterator[R]:
    """Yield `function(item)` for each item, in order, while `threads` threads work on the items that follow.

    Args:
        items: taken one by one in the caller's thread, when there is room.
        threads: 0 calls `function` in the caller's thread.
        depth: results that may wait, finished or not; it bounds the memory.

    An exception of `function` is raised where its result would have come; items not begun by then are dropped.
    """
    if threads == 0:
        yield from map(function, items)
        return
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
