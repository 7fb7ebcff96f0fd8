"""An error instead of silence where a C++ library ends this process.

pyarrow lets exceptions out of functions that promise none, where a file contradicts itself. C++ then calls `abort`,
whose only line names no file. Nothing can be saved at that point, but the file can be named.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator

from altdiffusion.errors import AltDiffusionError

STATUS = 2
"""Exit status, as for any AltDiffusionError of a job."""

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
_libc = ctypes.CDLL(None)
_libc.signal.argtypes, _libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
_lock = threading.RLock()


@contextlib.contextmanager
def abort_means(error: AltDiffusionError) -> Iterator[None]:
    """Print an error and exit with its status where a library calls `abort` within the block.

    Python's own handlers run after the call that was interrupted, which never returns here, so C is given one. There
    is one per process: a block waits for those of other threads, so keep it to the calls that it is for.
    """

    def end(_: int) -> None:
        try:
            print(f"error: {error}", file=sys.stderr, flush=True)  # as a terminal or a log is to have it
            sys.stdout.flush()
        finally:
            os._exit(STATUS)

    handler = _Handler(end)
    with _lock:
        before = _libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
        try:
            yield
        finally:
            _libc.signal(signal.SIGABRT, before)
