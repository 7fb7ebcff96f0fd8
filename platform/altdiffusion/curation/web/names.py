"""The addresses behind names: each name is asked for once at a time, and its answer remembered for a while.

Name resolution is the first thing that a crawl breaks. Here all rows of a host that wait share one question, and the
next ones its answer until that has aged. A name that does not exist is remembered too, for a shorter time; a resolver
that failed is not. A remembered answer is not a rebinding hole: every use is checked and then connected to as the
address itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from altdiffusion.curation.rejects import TIMEOUT, Refused
from altdiffusion.curation.web.event_loop import Pending, until_ready
from altdiffusion.curation.web.resolvers import Answered, Ask, NoName

LASTS_S = 60.0
NO_NAME_LASTS_S = 20.0
MOST_NAMES = 65536


class _LookUp(Pending):
    """One question, for all that wait for its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.answer: Answered = ()


class Names:
    """The names of a worker, for all its loops.

    Args:
        ask: called once for all that want a name at the same time.
        remembers: whether its answers are used again.
    """

    def __init__(self, ask: Ask, *, remembers: bool = True) -> None:
        self._ask, self._remembers = ask, remembers
        self._known: dict[str, tuple[float, Sequence[str] | NoName]] = {}
        self._asked: dict[tuple[str, int], _LookUp] = {}
        self._lock = threading.Lock()

    async def addresses(self, host: str, port: int, end: float) -> Sequence[str]:
        """Return the addresses of a host, unchecked.

        Args:
            end: in seconds of time.monotonic().

        Raises:
            Refused: dns; timeout at `end`.
        """
        answer = self._remembered(host)
        if answer is None:
            look_up = self._look_up(host, port, end)
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
            self._known = {host: entry for host, entry in self._known.items() if not isinstance(entry[1], NoName)}

    def _remembered(self, host: str) -> Answered | None:
        with self._lock:
            known = self._known.get(host)
        return known[1] if known is not None and known[0] > time.monotonic() else None

    def _look_up(self, host: str, port: int, end: float) -> _LookUp:
        """Return the question that is open, or ask it."""
        with self._lock:
            look_up = self._asked.get((host, port))
            if look_up is not None:
                return look_up
            look_up = self._asked[host, port] = _LookUp()
        self._ask(host, port, end - time.monotonic(), lambda answer: self._answered(host, port, answer))
        return look_up

    def _answered(self, host: str, port: int, answer: Answered) -> None:
        with self._lock:
            look_up = self._asked.pop((host, port))
            if self._remembers and (isinstance(answer, NoName) or not isinstance(answer, BaseException)):
                if len(self._known) >= MOST_NAMES:
                    self._known.clear()
                lasts_s = NO_NAME_LASTS_S if isinstance(answer, NoName) else LASTS_S
                self._known[host] = (time.monotonic() + lasts_s, answer)
        look_up.answer = answer
        look_up.done()
