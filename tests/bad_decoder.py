"""A decoder with the faults that codecs have had, for images that name a fault in the bytes behind their end.

SEGV crashes, HANG never returns, nor does SLEEP, KILL is a kill from outside, once: the next process decodes
the image, and the note of it is a file, so this one is not confined. Run like
`altdiffusion.curation.images.decoder_process`, whose code it is otherwise.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

from altdiffusion.curation.images import decoder_process


class Decoder(decoder_process.Decoder):
    def __call__(self, body: bytes) -> bytes:
        end = body[-400:]
        if b"SEGV" in end:
            ctypes.string_at(0)
        if b"HANG" in end:
            while True:
                pass
        if b"SLEEP" in end:
            time.sleep(3600)
        if b"KILL:" in end:
            path = end.partition(b"KILL:")[2].partition(b"\0")[0].decode()
            if not os.path.exists(path):
                open(path, "x").close()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(body)


if __name__ == "__main__":
    decoder_process.Decoder = Decoder  # type: ignore[misc]
    decoder_process.confine = lambda: 0
    if sys.argv[1] == "fail":
        raise ImportError("libGL.so.1: cannot open shared object file")
    decoder_process.main()
