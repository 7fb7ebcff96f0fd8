"""The decoder processes of a worker: hostile bytes in, a stored image or a reason out, whatever happens in between.

A process that crashes, takes too long or needs too much memory is ended and replaced. Its row is tried again in a new
process, because the cause may have been another one (the machine was short of memory); then it is rejected.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import altdiffusion
from altdiffusion.config import semantic
from altdiffusion.curation.config import StoreConfig
from altdiffusion.curation.images.color import PROFILED, Profiled
from altdiffusion.curation.images.confinement import NO_LANDLOCK, NO_SECCOMP
from altdiffusion.curation.images.decoder_messages import ASK, DONE, READY, TELL
from altdiffusion.curation.rejects import DECODE_TIMEOUT, DECODER_CRASH, KNOWN, MEMORY_LIMIT, Refused
from altdiffusion.errors import AltDiffusionError

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-P", "-m", "altdiffusion.curation.images.decoder_process")
_TRIES = 2
_START_S = 120.0
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """An image as it is stored. Sides are in pixels. `phash` is that of the stored image, `whole_phash` that of the
    image before a crop or border; both are signed 64 bits. `profiled`: what became of the colours that the file
    states."""

    body: bytes
    width: int
    height: int
    original_width: int
    original_height: int
    phash: int
    whole_phash: int
    profiled: Profiled | None


class DecoderPool:
    """The processes for the threads of one worker; each is started when it is first needed.

    Args:
        config: its `decoders: auto` counts the cores that this process may use. The driver puts a number there where
            a worker has fewer, as Ray's workers do.
    """

    def __init__(self, config: StoreConfig) -> None:
        self._free: queue.LifoQueue[_Decoder] = queue.LifoQueue()
        self.size = config.decoder_count(len(os.sched_getaffinity(0)))
        """How many there are."""
        self._all = tuple(_Decoder(config) for _ in range(self.size))
        for decoder in self._all:
            self._free.put(decoder)

    def decode(self, body: bytes) -> Decoded:
        """Wait for a free process and have it decode.

        Raises:
            Refused: decode, decoder_crash, decode_timeout, memory_limit, or a reason of `read_header`.
            AltDiffusionError: a process does not start.
        """
        with self._borrowed() as decoder:
            return decoder.decode(body)

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[_Decoder]:
        decoder = self._free.get()
        try:
            yield decoder
        finally:
            self._free.put(decoder)

    def close(self) -> None:
        """End the processes; the next `decode` starts new ones."""
        for decoder in self._all:
            decoder.stop()


class _Decoder:
    """At most one process, used by one thread at a time."""

    def __init__(self, config: StoreConfig) -> None:
        self._timeout_s = config.decode_timeout_s
        self._memory_mib = config.decoder_memory_mib
        self._settings = json.dumps(semantic(config))
        self._environment = _environment(config)
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        self._finalizer: weakref.finalize | None = None  # type: ignore[type-arg, unused-ignore]

    def decode(self, body: bytes) -> Decoded:
        """Decode in the process, which is started where there is none."""
        for attempt in range(1, _TRIES + 1):
            sock = self._sock or self._start()
            try:
                sock.settimeout(self._timeout_s)
                sock.sendall(ASK.pack(len(body)))
                sock.sendall(body)
                head = _receive(sock, TELL.size)
                answer = TELL.unpack(head) if head is not None else None
                rest = _receive(sock, answer[-1]) if answer is not None else None
            except TimeoutError:
                self.stop()
                raise Refused(DECODE_TIMEOUT, f"more than {self._timeout_s:g} s") from None
            except OSError:
                answer = rest = None
            if answer is None or rest is None:
                died = self.stop()
                if attempt == _TRIES:
                    raise Refused(DECODER_CRASH, died)
                continue
            if answer[0] == DONE:
                return Decoded(
                    body=rest,
                    width=answer[1],
                    height=answer[2],
                    original_width=answer[3],
                    original_height=answer[4],
                    phash=answer[5],
                    whole_phash=answer[6],
                    profiled=(None, *PROFILED)[answer[7]],
                )
            reason, _, detail = rest.decode().partition("\n")
            if reason != MEMORY_LIMIT:
                raise Refused(KNOWN.get(reason, DECODER_CRASH), detail)
            self.stop()  # a new process has all of its memory again
            if attempt == _TRIES:
                raise Refused(MEMORY_LIMIT, f"more than {self._memory_mib} MiB")
        raise AssertionError("unreachable")

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            for end in (ours, theirs):
                for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                    end.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
            process = subprocess.Popen(
                [*COMMAND, str(theirs.fileno()), self._settings],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                env=self._environment,
            )
        ours.settimeout(_START_S)
        try:
            head = _receive(ours, TELL.size)
        except OSError:
            head = None
        if head is None or TELL.unpack(head)[0] != READY:
            ours.close()
            process.kill()
            printed = process.communicate()[1].decode(errors="replace").strip()
            raise AltDiffusionError(
                "the decoder process",
                f"does not start ({printed.splitlines()[-1][:200] if printed else 'it prints nothing'})",
                "run `python -c 'import cv2, img2dataset'` in the worker's environment and fix what it reports",
            )
        if process.stderr is not None:
            process.stderr.close()
        _warn_of_missing(TELL.unpack(head)[1])
        self._process, self._sock = process, ours
        self._finalizer = weakref.finalize(self, _end, process, ours)
        return ours

    def stop(self) -> str:
        """End the process; return how it had ended by itself, if it had."""
        if self._process is None or self._finalizer is None:
            return ""
        process, finalizer = self._process, self._finalizer
        self._process = self._sock = self._finalizer = None
        finalizer()
        code = process.returncode
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"


@functools.cache
def _warn_of_missing(missing: int) -> None:
    """Report, once, that this kernel does not confine decoders."""
    names = [name for bit, name in ((NO_LANDLOCK, "Landlock"), (NO_SECCOMP, "seccomp filters")) if missing & bit]
    if names:
        log.warning(
            "decoders are less confined than they could be: this kernel offers no %s (docs/security.md)",
            " and no ".join(names),
        )


def _receive(sock: socket.socket, length: int) -> bytes | None:
    """Return `length` bytes; None where the connection ends before."""
    buffer = bytearray(length)
    view, at = memoryview(buffer), 0
    while at < length:
        read = sock.recv_into(view[at:])
        if not read:
            return None
        at += read
    return bytes(buffer)


def _end(process: subprocess.Popen[bytes], sock: socket.socket) -> None:
    sock.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.2)  # a process that crashed may not have ended yet
    process.kill()
    process.wait()


_KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(8 << 20), "MALLOC_TRIM_THRESHOLD_": str(32 << 20)}
"""For glibc: the memory of one image serves the next one. Giving it back and taking it again is 120 page faults per
image, 8 % of a decoder's CPU."""


def _environment(config: StoreConfig) -> dict[str, str]:
    """Return what a decoder needs to find its packages, and no secret of the worker's."""
    kept = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONHOME", "TMPDIR")
    root = str(Path(altdiffusion.__file__).resolve().parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "OPENCV_IO_MAX_IMAGE_PIXELS": str(config.max_pixels),
        **_KEEP_FREED_MEMORY,
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    }
