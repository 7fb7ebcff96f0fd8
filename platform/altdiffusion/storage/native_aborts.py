"""An error instead of silence where a C++ library ends this process.

pyarrow lets exceptions out of functions that promise none, where a file contradicts itself. C++ then calls `abort`,
whose only line names no file. Nothing can be saved at that point, but the file can be named.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator

from altdiffusion.errors import AltDiffusionError

STATUS = 2
"""Exit status, as for any AltDiffusionError of a job."""

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)


@contextlib.contextmanager
def abort_means(error: AltDiffusionError) -> Iterator[None]:
    """Print an error and exit with its status where a library calls `abort` within the block.

    Signal handlers belong to the process: use it in the main thread, for work of this thread. Python's own handlers run
    after the call that was interrupted, which never returns here, so C is given one.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p

    def end(_: int) -> None:
        os.write(2, f"error: {error}\n".encode())
        os._exit(STATUS)

    handler = _Handler(end)
    before = libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        libc.signal(signal.SIGABRT, before)
