"""The addresses behind names: looked up in a few threads, each name once at a time, and remembered for a while.

The system's resolver is the first thing that a crawl breaks. Here it is asked once for all rows of a host that wait,
by a bounded number of threads, and again only when its answer has aged. A name that does not exist is remembered too,
for a shorter time; a resolver that failed is not. A remembered answer is not a rebinding hole: every use is checked
and then connected to as the address itself.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence

from altdiffusion.curation.rejects import DNS, TIMEOUT, Refused
from altdiffusion.curation.web.event_loop import Pending, until_ready

Resolver = Callable[[str, int, float], Sequence[str]]
"""(host, port, seconds it may take) -> addresses as text; it raises Refused."""

_LASTS_S = 60.0
_NO_NAME_LASTS_S = 20.0
_MOST_NAMES = 65536
_THREADS = 128
"""A resolver that waits for a dead name server holds a thread for seconds."""
_IDLE_S = 10.0
_NO_NAME = (socket.EAI_NONAME, socket.EAI_NODATA)  # type: ignore[attr-defined, unused-ignore]


class NoName(Refused):
    """The name does not exist."""


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


class _LookUp(Pending):
    """One question to the resolver, for all that wait for its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.answer: Sequence[str] | Refused | BaseException = ()


class Names:
    """The names of a worker, for all its loops.

    Args:
        resolver: called in threads of its own, which are left behind where it does not return in time.
        remembers: whether its answers are used again. What is being asked is never asked twice at the same time.
    """

    def __init__(self, resolver: Resolver = system_resolver, *, remembers: bool = True) -> None:
        self._resolver, self._remembers = resolver, remembers
        self._known: dict[str, tuple[float, Sequence[str] | Refused]] = {}
        self._asked: dict[tuple[str, int], _LookUp] = {}
        self._lock = threading.Lock()
        self._questions: queue.SimpleQueue[tuple[str, int, float, _LookUp]] = queue.SimpleQueue()
        self._threads = self._open = 0

    async def addresses(self, host: str, port: int, end: float) -> Sequence[str]:
        """Return the addresses of a host, unchecked.

        Args:
            end: in seconds of time.monotonic().

        Raises:
            Refused: dns; timeout at `end`.
        """
        now = time.monotonic()
        with self._lock:
            known = self._known.get(host)
            look_up = self._asked.get((host, port))
            if known is not None and known[0] > now:
                look_up = _LookUp()
                look_up.answer, look_up.is_done = known[1], True
            elif look_up is None:
                look_up = self._ask(host, port, end - now)
        if not look_up.is_done:
            try:
                await until_ready(look_up, end)
            except TimeoutError:
                raise Refused(TIMEOUT, f"name {host}") from None
        answer = look_up.answer
        if isinstance(answer, Refused):
            raise Refused(answer.reason, answer.detail)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def forget_failures(self) -> None:
        """Forget which names did not exist: the network may be another one by now."""
        with self._lock:
            self._known = {host: entry for host, entry in self._known.items() if not isinstance(entry[1], Refused)}

    # With the lock held:

    def _ask(self, host: str, port: int, timeout_s: float) -> _LookUp:
        look_up = self._asked[host, port] = _LookUp()
        self._questions.put((host, port, timeout_s, look_up))
        self._open += 1
        if self._threads < min(self._open, _THREADS):
            self._threads += 1
            threading.Thread(target=self._answer, name="names", daemon=True).start()
        return look_up

    # In a thread of its own:

    def _answer(self) -> None:
        while True:
            try:
                host, port, timeout_s, look_up = self._questions.get(timeout=_IDLE_S)
            except queue.Empty:
                with self._lock:
                    if self._open < self._threads:
                        self._threads -= 1
                        return
                continue
            try:
                look_up.answer = self._resolver(host, port, timeout_s)
            except BaseException as error:
                look_up.answer = error
            with self._lock:
                self._remember(host, look_up.answer)
                del self._asked[host, port]
                self._open -= 1
            look_up.done()

    def _remember(self, host: str, answer: Sequence[str] | BaseException) -> None:
        lasts_s = _NO_NAME_LASTS_S if isinstance(answer, NoName) else _LASTS_S
        if not self._remembers or (isinstance(answer, BaseException) and not isinstance(answer, NoName)):
            return
        if len(self._known) >= _MOST_NAMES:
            self._known.clear()
        self._known[host] = (time.monotonic() + lasts_s, answer)  # type: ignore[assignment]
