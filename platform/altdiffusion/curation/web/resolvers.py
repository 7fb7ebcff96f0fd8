"""Who is asked for the addresses behind a name: a function in a few threads, or name servers directly, by c-ares."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

from altdiffusion.curation.rejects import DNS, Refused

Resolver = Callable[[str, int, float], Sequence[str]]
"""(host, port, seconds it may take) -> addresses as text; it raises Refused."""
Answered = Sequence[str] | BaseException
"""Addresses as text, or why there are none."""
Ask = Callable[[str, int, float, Callable[[Answered], None]], None]
"""(host, port, seconds it may take, called with the answer by any thread, once); it returns at once."""

_THREADS = 128
"""A resolver that waits for a dead name server holds a thread for seconds."""
_IDLE_S = 10.0
_NO_NAME = (socket.EAI_NONAME, socket.EAI_NODATA)  # type: ignore[attr-defined, unused-ignore]
_TRIES = 2


class NoName(Refused):
    """The name does not exist, or has no address."""


def system_resolver(host: str, port: int, timeout_s: float) -> Sequence[str]:
    """Return what getaddrinfo finds; it takes the time that it takes.

    Raises:
        Refused: dns; NoName where the name does not exist.
    """
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        missing = isinstance(error, socket.gaierror) and error.errno in _NO_NAME
        raise (NoName if missing else Refused)(DNS, str(error)) from None
    if not entries:
        raise Refused(DNS, "no address")
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))


class InThreads:
    """Asks a resolver, which blocks, in threads of its own: they are left behind where it does not return in time."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._questions: queue.SimpleQueue[tuple[str, int, float, Callable[[Answered], None]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = self._open = 0

    def __call__(self, host: str, port: int, timeout_s: float, then: Callable[[Answered], None]) -> None:
        """Ask for a host; `then` is called with the answer."""
        with self._lock:
            self._open += 1
            starts = self._threads < min(self._open, _THREADS)
            self._threads += starts
        self._questions.put((host, port, timeout_s, then))
        if starts:
            threading.Thread(target=self._answer, name="names", daemon=True).start()

    def _answer(self) -> None:
        while True:
            try:
                host, port, timeout_s, then = self._questions.get(timeout=_IDLE_S)
            except queue.Empty:
                with self._lock:
                    if self._open < self._threads:
                        self._threads -= 1
                        return
                continue
            answer: Answered
            try:
                answer = self._resolver(host, port, timeout_s)
            except BaseException as error:
                answer = error
            with self._lock:
                self._open -= 1
            then(answer)


class NameServers:
    """Asks these name servers by c-ares, whose one thread waits for all of them; needs the package `pycares`.

    Args:
        servers: addresses, with a port where it is not 53.
        timeout_s: of one name, all tries together.
    """

    def __init__(self, servers: Sequence[str], timeout_s: float) -> None:
        import pycares

        self._channel: Any = pycares.Channel(servers=servers, timeout=timeout_s / _TRIES, tries=_TRIES, rotate=True)
        errno = pycares.errno
        self._missing = {errno.ARES_ENOTFOUND, errno.ARES_ENODATA, errno.ARES_ENONAME, errno.ARES_EBADNAME}

    def __call__(self, host: str, port: int, timeout_s: float, then: Callable[[Answered], None]) -> None:
        """Ask for a host; `then` is called with the answer, whose details are worded as the system's are."""

        def answered(found: Any, problem: int | None) -> None:
            if problem is None:
                addresses = dict.fromkeys(_text(node.addr[0]) for node in found.nodes)
                then(list(addresses) or Refused(DNS, "no address"))
            elif problem in self._missing:
                then(NoName(DNS, f"[Errno {socket.EAI_NONAME}] Name or service not known"))
            else:
                then(Refused(DNS, f"[Errno {socket.EAI_AGAIN}] Temporary failure in name resolution"))

        self._channel.getaddrinfo(host, port, type=socket.SOCK_STREAM, callback=answered)


def _text(address: str | bytes) -> str:
    return address.decode("ascii") if isinstance(address, bytes) else address
