"""Connections that may be used again: a TLS handshake costs more than all the rest of a small download.

A connection belongs to the scheme, name and port of the URL it was made for, and leads to the address that was
checked when it was made: using it again opens no window for rebinding.
"""

from __future__ import annotations

import collections
import contextlib
import io
import socket
import ssl
import threading
import time
from typing import Any

from altdiffusion.curation.rejects import TIMEOUT, Refused

Key = tuple[str, str, int]
"""Scheme, host and port of a URL."""
_BUFFER_BYTES = 1 << 14
_IDLE_S = 15.0


class Deadline:
    """Seconds left until a point in time; Refused when there are none."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        left = self._end - time.monotonic()
        if left <= 0:
            raise Refused(TIMEOUT, "total time")
        return left


class _TimedSocket:
    """A socket whose reads and writes may take what a deadline leaves."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self.sock, self.deadline = sock, deadline
        self._timeout = -1.0

    def set_timeout(self) -> None:
        """Set the time-out of the next read or write: what is left, or a tenth more.

        Setting it costs a system call and a change of threads.
        """
        left = self.deadline.left()
        if not left <= self._timeout <= 1.1 * left:
            self.sock.settimeout(left)
            self._timeout = left

    def do_not_block(self) -> None:
        self.sock.settimeout(0)
        self._timeout = -1.0


class Connection:
    """A connected socket; used by one thread at a time, under the deadline it is given."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self.requests = 0
        self.idle_since = 0.0
        self._timed = _TimedSocket(sock, deadline)
        self._raw = _TimedReader(self._timed)
        self.reader = io.BufferedReader(self._raw, _BUFFER_BYTES)
        """What comes on it; the next answer comes through it too."""

    def set_deadline(self, deadline: Deadline) -> None:
        """Set the deadline of the next request."""
        self._timed.deadline = deadline

    def sendall(self, data: bytes) -> None:
        self._raw.received = 0
        self._timed.set_timeout()
        self._timed.sock.sendall(data)

    def end(self) -> None:
        """Close the socket."""
        with contextlib.suppress(OSError):
            self._timed.sock.close()

    @property
    def is_unanswered(self) -> bool:
        """Whether not one byte has come since the request."""
        return self._raw.received == 0

    def waiting(self) -> int:
        """Return how many bytes wait to be read; -1 where the other side has closed. It never blocks."""
        self._raw.blocking = False
        self._timed.do_not_block()
        try:
            held = len(self.reader.peek(1))
        except OSError:
            return -1
        finally:
            self._raw.blocking = True
        return -1 if not held and self._raw.ended else held


class _TimedReader(io.RawIOBase):
    def __init__(self, timed: _TimedSocket) -> None:
        super().__init__()
        self._timed = timed  # not the connection: a cycle would keep its buffer until the next garbage collection
        self.blocking, self.ended, self.received = True, False, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self.blocking:
            self._timed.set_timeout()
        try:
            read = self._timed.sock.recv_into(buffer)
        except (BlockingIOError, ssl.SSLWantReadError):
            if self.blocking:
                raise
            return None
        self.ended = not read
        self.received += read
        return read


class IdleConnections:
    """Connections between two requests; for all threads of a worker."""

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
