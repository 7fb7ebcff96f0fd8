"""Connections that may be used again: a TLS handshake costs more than all the rest of a small download.

A connection belongs to the scheme, name and port of the URL it was made for, and leads to the address that was
checked when it was made: using it again opens no window for rebinding. Its socket never blocks: what it has is taken,
and what it has not yet is waited for on the event loop.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import resource
import socket
import ssl
import threading
import time

from altdiffusion.curation.rejects import TIMEOUT, Refused
from altdiffusion.curation.web.event_loop import give_way, until_ready
from altdiffusion.errors import AltDiffusionError

Key = tuple[str, str, int]
"""Scheme, host and port of a URL."""
_PIECE = 1 << 16
_NOT_YET = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_IDLE_S = 15.0
_OTHER_FILES = 512
_AT_ONCE_S = 0.01
"""How long one answer may keep all others waiting."""


def allow_connections(count: int, what: str) -> None:
    """Raise this process's limit of open files, so that it can hold so many connections.

    Args:
        what: names the setting that asks for them.

    Raises:
        AltDiffusionError: the machine does not allow it. Without this check every further link would fail.
    """
    needed = count + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise AltDiffusionError(
            what,
            f"needs {needed:,} open files, but this machine allows a process {hard:,}",
            "give fewer, or raise the limit (`ulimit -Hn`, LimitNOFILE of a service)",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


class Deadline:
    """A point in time; Refused when it has come."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        left = self.end - time.monotonic()
        if left <= 0:
            raise Refused(TIMEOUT, "total time")
        return left


async def connected(address: str, port: int, end: float) -> socket.socket:
    """Return a socket that is connected to an address and does not block.

    Raises:
        OSError: TimeoutError at `end`, which is in seconds of time.monotonic(); else why it cannot be connected.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while (problem := sock.connect_ex((address, port))) not in (0, errno.EISCONN):
            if problem not in (errno.EINPROGRESS, errno.EALREADY):
                raise OSError(problem, os.strerror(problem))
            await until_ready(sock, end)
    except BaseException:
        sock.close()
        raise
    return sock


async def secured(sock: socket.socket, context: ssl.SSLContext, name: str, end: float) -> ssl.SSLSocket:
    """Return the socket with TLS on it, verified against a name; it is closed where that fails.

    Raises:
        OSError: TimeoutError at `end`; ssl.SSLError; else why the connection has ended.
    """
    wrapped = None
    try:
        wrapped = context.wrap_socket(sock, server_hostname=name, do_handshake_on_connect=False)
        while True:
            try:
                wrapped.do_handshake()
                return wrapped
            except _NOT_YET:
                await until_ready(wrapped, end)
    except BaseException:
        (wrapped or sock).close()
        raise


class Connection:
    """A connected socket that does not block; used by one coroutine at a time, under the deadline it is given."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self.requests = 0
        self.idle_since = 0.0
        self.deadline = deadline
        """That of the request that it carries."""
        self._sock = sock
        self._held, self._at = b"", 0
        """What came, and where in it what has not been read begins: the next answer's bytes too."""
        self._received = 0
        self._began = 0.0
        """When it last let others run."""

    async def send(self, data: bytes) -> None:
        """Send a request."""
        self._received, self._began = 0, time.monotonic()
        left = memoryview(data)
        while left:
            self.deadline.left()
            try:
                left = left[self._sock.send(left) :]
            except _NOT_YET:
                await until_ready(self._sock, self.deadline.end)

    def held_line(self, limit: int) -> bytes:
        """Return a line with its end, if all of it has come and it is not longer than `limit`; else nothing."""
        end = self._held.find(b"\n", self._at, self._at + limit) + 1
        if not end:
            return b""
        start, self._at = self._at, end
        return self._held[start:end]

    async def readline(self, limit: int) -> bytes:
        """Return a line with its end; without, where it is longer than `limit` or the other side closes."""
        while (end := self._held.find(b"\n", self._at, self._at + limit)) < 0 and len(self._held) - self._at < limit:
            piece = await self._receive(_PIECE)
            if not piece:
                break
            self._held, self._at = self._held[self._at :] + piece, 0
        return self._take(limit if end < 0 else end + 1 - self._at)

    async def read(self, count: int) -> bytes:
        """Return so many bytes; fewer only where the other side closes."""
        pieces = [self._take(count)]
        left = count - len(pieces[0])
        while left and (piece := await self._receive(min(left, _PIECE))):
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)

    def end(self) -> None:
        """Close the socket."""
        with contextlib.suppress(OSError):
            self._sock.close()

    @property
    def is_unanswered(self) -> bool:
        """Whether not one byte has come since the request."""
        return self._received == 0

    def waiting(self) -> int:
        """Return how many bytes have come and not been read; -1 where the other side has closed."""
        if self._at == len(self._held):
            try:
                self._held, self._at = self._sock.recv(_PIECE), 0
            except _NOT_YET:
                return 0
            except OSError:
                return -1
        return len(self._held) - self._at or -1

    def _take(self, count: int) -> bytes:
        start, self._at = self._at, min(self._at + count, len(self._held))
        taken = self._held[start : self._at]
        if self._at == len(self._held):
            self._held, self._at = b"", 0
        return taken

    async def _receive(self, most: int) -> bytes:
        """Return what has come, as soon as something has; empty where the other side has closed."""
        while True:
            left = self.deadline.left()
            if self.deadline.end - left - self._began > _AT_ONCE_S:  # it sends faster than it is read
                await give_way()
                self._began = time.monotonic()
            try:
                piece = _received(self._sock, most)
            except _NOT_YET:
                await until_ready(self._sock, self.deadline.end)
                self._began = time.monotonic()
            else:
                self._received += len(piece)
                return piece


class _Scratch(threading.local):
    """Room for one piece per thread: `recv` makes room for a whole one, which thousands of shorter ones fragment."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(_PIECE))


_scratch = _Scratch()


def _received(sock: socket.socket, most: int) -> bytes:
    view = _scratch.view
    return bytes(view[: sock.recv_into(view, most)])


class IdleConnections:
    """Connections between two requests; for all loops of a worker."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._idle: collections.OrderedDict[tuple[Key, int], Connection] = collections.OrderedDict()
        self._of: dict[Key, list[int]] = {}
        self._lock = threading.Lock()
        self._number = 0

    def take(self, key: Key) -> Connection | None:
        """Return the connection used last, if it is still good: nothing has come on it meanwhile, not even its end."""
        while True:
            with self._lock:
                numbers = self._of.get(key)
                if not numbers:
                    return None
                connection = self._remove(key, numbers[-1])
            if time.monotonic() - connection.idle_since < _IDLE_S and connection.waiting() == 0:
                return connection
            connection.end()

    def give(self, key: Key, connection: Connection) -> None:
        """Keep a connection whose answer has been read to its end; the one idle for longest makes room."""
        connection.idle_since = time.monotonic()
        old = None
        with self._lock:
            self._number += 1
            self._idle[key, self._number] = connection
            self._of.setdefault(key, []).append(self._number)
            if len(self._idle) > self._limit:
                old = self._remove(*next(iter(self._idle)))
        if old is not None:
            old.end()

    def close(self) -> None:
        with self._lock:
            connections = list(self._idle.values())
            self._idle.clear()
            self._of.clear()
        for connection in connections:
            connection.end()

    def _remove(self, key: Key, number: int) -> Connection:
        numbers = self._of[key]
        numbers.remove(number)
        if not numbers:
            del self._of[key]
        return self._idle.pop((key, number))
