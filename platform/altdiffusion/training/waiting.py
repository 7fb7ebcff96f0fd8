"""Marks where a thread waits for other ranks, so that a stall is blamed on the rank that does not come.

with waiting():            # a collective, or a transfer behind one
    dist.all_reduce(sums)
with waiting_for(thread):  # waits for the other ranks exactly while that thread does
    thread.join()
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

_DEPTH: dict[int, int] = {}
_FOR: dict[int, int] = {}
"""By thread id: how many marks are open, and the thread that is waited for. A thread writes only its own entries."""


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Mark this thread as waiting for other ranks."""
    me = threading.get_ident()
    _DEPTH[me] = _DEPTH.get(me, 0) + 1
    try:
        yield
    finally:
        _DEPTH[me] -= 1
        if not _DEPTH[me]:
            del _DEPTH[me]


@contextlib.contextmanager
def waiting_for(thread: threading.Thread) -> Iterator[None]:
    """Mark this thread as waiting for a thread of its own rank, which may wait for others in turn."""
    me = threading.get_ident()
    if thread.ident is not None:
        _FOR[me] = thread.ident
    try:
        yield
    finally:
        _FOR.pop(me, None)


def is_waiting(thread: int) -> bool:
    """Return whether the thread with this id waits for other ranks, itself or through a thread it waits for."""
    seen = set()
    while thread not in seen:
        seen.add(thread)
        if thread in _DEPTH:
            return True
        thread = _FOR.get(thread, thread)
    return False
