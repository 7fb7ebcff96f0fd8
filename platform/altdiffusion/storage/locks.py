"""Locks of files on one machine, which end with their process, and a bounded wait for them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from altdiffusion.errors import AltDiffusionError

_LOOK_EVERY_S = 0.1


@contextlib.contextmanager
def held(path: str, what: str, timeout_s: float) -> Iterator[None]:
    """Hold the lock of a file, which is made if it is not there, for the duration of the block.

    A process that was killed holds no lock; one that was stopped or hangs does.

    Args:
        what: what the lock protects, for the error.

    Raises:
        AltDiffusionError: another process holds the lock for longer than `timeout_s`.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        end = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise AltDiffusionError(
                        what,
                        f"has been held by another process for more than {timeout_s:g} s (lock {path})",
                        f"find it with `fuser {path}`, end it, then run the same command again",
                    ) from None
                time.sleep(_LOOK_EVERY_S)
        yield
    finally:
        os.close(descriptor)  # which releases the lock
