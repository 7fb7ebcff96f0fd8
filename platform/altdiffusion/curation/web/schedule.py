"""Which link is asked next: every host in its turn, no host faster than it may be asked, no download ever held by one.

A unit's links wait in one queue per host. One thread owns the queues and, by its event loop, all the sockets: whenever
a download may start, it takes the next host whose turn has come. Pacing, Retry-After, backoff and a robots.txt that is
still on its way hold the host back and nothing else. A redirect goes to the end of the queue of the host it names; so
does a second attempt, when it is due. What has been fetched waits, in bounded memory, until a thread that iterates
over the schedule takes it, in order of arrival.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import math
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.curation.config import DownloadConfig
from altdiffusion.curation.rejects import (
    BLOCKLIST,
    CONNECT,
    HOST_BUSY,
    NONE,
    OPT_OUT_ROBOTS,
    RESET,
    ROBOTS_UNREACHABLE,
    TIMEOUT,
    TOO_MANY_REDIRECTS,
    Refused,
    http_status,
)
from altdiffusion.curation.web.blocklist import Blocklist
from altdiffusion.curation.web.connections import Deadline
from altdiffusion.curation.web.event_loop import EventLoop
from altdiffusion.curation.web.fetch import Fetched, Fetcher, Later, Moved
from altdiffusion.curation.web.robots import Robots, RobotsCache
from altdiffusion.execution.reject_reasons import Reason
from altdiffusion.monitoring.catalogue import DOWNLOADS_IN_FLIGHT
from altdiffusion.monitoring.record import set_to
from altdiffusion.urls import Target

_AGAIN = frozenset({TIMEOUT, CONNECT, RESET, http_status(429), http_status(503)})
_ROBOTS_AGAIN = frozenset({CONNECT, ROBOTS_UNREACHABLE})
_LONGEST_BACKOFF_S = 30.0
_AT_ONCE = 64
"""Downloads that are started before those on their way are looked at again."""
_REPORT_EVERY_S = 5.0
_HOST = r"^ *[A-Za-z]+://(?P<host>[^/?#:@\\]+)"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a row: a body, or the reason why there is none."""

    row: int
    body: bytes | None
    reason: Reason = NONE
    detail: str = ""
    final_url: str = ""
    """The link that gave the body, where redirects led to it."""


@dataclass(slots=True)
class Pace:
    """When a host may be asked again, in seconds of time.monotonic()."""

    next_at: float = 0.0
    paused_until: float = 0.0
    crawl_delay_s: float = 0.0
    strikes: int = 0
    """429 and 503 in a row."""


class Paces:
    """The pace of each host, kept from unit to unit of one worker."""

    def __init__(self) -> None:
        self._paces: dict[str, Pace] = {}

    def of(self, host: str) -> Pace:
        return self._paces.setdefault(host, Pace())

    def forget_past(self) -> None:
        """Forget the hosts that may be asked at once."""
        now = time.monotonic()
        self._paces = {
            host: pace for host, pace in self._paces.items() if max(pace.next_at, pace.paused_until) > now
        }  # fmt: skip


@dataclass(slots=True)
class _Job:
    """One attempt at a row, or what a redirect made of it."""

    row: int
    target: Target
    hops: int = 0
    tries: int = 0
    spent_s: float = 0.0


@dataclass(slots=True)
class _Host:
    """A queue: rows `at` to `stop` of the schedule's order have not been tried, `again` are due at their time."""

    name: str
    pace: Pace
    at: int = 0
    stop: int = 0
    again: list[tuple[float, int, _Job]] = field(default_factory=list)
    active: int = 0
    entry: int | None = None
    """Number of its entry in the heap; other entries of it are void."""
    held: bool = False
    """Its robots.txt is being asked for, or waits to be."""
    robots_tries: int = 0


@dataclass(frozen=True, slots=True)
class _Turn:
    host: _Host
    job: _Job
    robots: Robots | None


class Schedule:
    """Fetches a unit's links, `config.threads` at a time, for the length of a `with` block.

    Args:
        urls: string, one per row.
        robots: None to ask no site for its robots.txt.
        paces: of this worker.
        listed: [rows] which rows must not be fetched.
        blocklist: what must not be fetched wherever it is met: asked about every redirect's target.
    """

    def __init__(
        self,
        urls: pa.Array,
        fetcher: Fetcher,
        robots: RobotsCache | None,
        paces: Paces,
        config: DownloadConfig,
        *,
        listed: npt.NDArray[np.bool_] | None = None,
        blocklist: Blocklist | None = None,
    ) -> None:
        self._listed, self._blocklist = listed, blocklist
        self._urls, self._fetcher, self._robots, self._paces, self._config = urls, fetcher, robots, paces, config
        self._interval_s = 0.0 if config.per_host_per_s is None else 1.0 / config.per_host_per_s
        self._half = max(1, config.threads // 2)
        self._connections = min(config.per_host_connections, self._half)
        self._lookahead = config.lookahead_mib << 20

        self._lock = threading.Lock()
        self._ready = threading.Condition(self._lock)  # there is something to take
        self._done: collections.deque[Result] = collections.deque()
        self._held_bytes = 0
        self._left = len(urls)  # rows that no thread has been given or waits for
        self._waits_for_room = False
        self._problem: BaseException | None = None
        self._ended = False

        # What follows is used by the loop's thread alone:
        self._loop = EventLoop()
        self._numbers = itertools.count()
        self._heap: list[tuple[float, int, _Host]] = []
        self._waiting_for_robots: collections.deque[_Host] = collections.deque()
        self._asking_robots = 0
        self._usual_bytes = 0.0
        self._open, self._in_flight = len(urls), 0
        self._idle_s = 0.0
        self._idle_since: float | None = None
        self._report_at = 0.0
        paces.forget_past()
        self._hosts: dict[str, _Host] = {}
        self._order = self._by_host()
        self._thread = threading.Thread(target=self._run, name="fetch", daemon=True)

    def __enter__(self) -> Schedule:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        self._loop.wake()
        self._thread.join()

    def __iter__(self) -> Schedule:
        return self

    def __next__(self) -> Result:
        """Wait for the next row that is finished; of all the threads that iterate, one gets it.

        Raises:
            StopIteration: every row has been given out.
            BaseException: what `fail` was given, or what ended the loop.
        """
        with self._lock:
            if not self._left:
                raise StopIteration
            self._left -= 1
            while self._problem is None and not self._done:
                self._ready.wait()
            if self._problem is not None:
                raise self._problem
            result = self._done.popleft()
            if result.body is not None:
                self._held_bytes -= len(result.body)
            makes_room, self._waits_for_room = self._waits_for_room and result.body is not None, False
        if makes_room:
            self._loop.wake()
        return result

    def fail(self, problem: BaseException) -> None:
        """Give the unit up: every thread that waits for a row, now or later, gets the first such problem raised."""
        with self._lock:
            self._problem = self._problem or problem
            self._ended = True
            self._ready.notify_all()
        self._loop.wake()

    def _by_host(self) -> npt.NDArray[np.int64]:
        """Return the row numbers, host by host; each host records its part. A link that only seems to be of a
        host moves to its own when it is taken."""
        host_names = pc.struct_field(pc.extract_regex(self._urls, _HOST), "host")
        names = pc.fill_null(pc.utf8_lower(host_names), "").dictionary_encode()
        numbers = names.indices.to_numpy()
        order = np.argsort(numbers, kind="stable")
        edges = np.searchsorted(numbers[order], np.arange(len(names.dictionary) + 1))
        now = time.monotonic()
        for number, name in enumerate(names.dictionary.to_pylist()):
            host = _Host(name, self._paces.of(name), int(edges[number]), int(edges[number + 1]))
            self._hosts[name] = host
            self._queue(host, now)
        return order

    # The loop's thread:

    def _run(self) -> None:
        try:
            with self._loop as loop:
                while self._open and not self._ended:
                    self._report_in_flight()
                    loop.turn(self._start_turns(loop))
        except BaseException as error:
            self.fail(error)
        set_to(DOWNLOADS_IN_FLIGHT, 0)

    def _report_in_flight(self) -> None:
        now = time.monotonic()
        if now >= self._report_at:
            self._report_at = now + _REPORT_EVERY_S
            set_to(DOWNLOADS_IN_FLIGHT, self._in_flight)

    def _start_turns(self, loop: EventLoop) -> float:
        """Start what may start; return the moment at which more may."""
        for _ in range(_AT_ONCE):
            now = time.monotonic()
            if self._in_flight >= self._config.threads or not self._has_room():
                self._count_idle(now, idle=False)
                return math.inf
            turn = self._due_turn(loop, now)
            if turn is None:
                return self._idle_until(now)
            self._count_idle(now, idle=False)
            loop.start(self._fetch(turn))
        return now

    async def _fetch(self, turn: _Turn) -> None:
        self._settle(turn, await self._attempt(turn))

    async def _attempt(self, turn: _Turn) -> Fetched | Moved | Refused:
        job, robots = turn.job, turn.robots
        if robots is not None:
            if robots.problem is not None:
                return _Unasked(*robots.problem)
            if not robots.allows(job.target.path):
                return _Unasked(OPT_OUT_ROBOTS)
        start = time.monotonic()
        try:
            outcome = await self._fetcher.get(job.target, Deadline(self._config.deadline_s - job.spent_s))
            return self._unlisted(outcome)
        except Refused as refused:
            refused.__traceback__ = None  # it holds what had been read
            return refused
        finally:
            job.spent_s += time.monotonic() - start

    def _unlisted(self, outcome: Fetched | Moved) -> Fetched | Moved | Refused:
        """Return what was found, but for a redirect to what must not be fetched."""
        if self._blocklist is None or isinstance(outcome, Fetched):
            return outcome
        listed = self._blocklist.names(self._fetcher.target(outcome.url))
        return Refused(BLOCKLIST, "redirects there") if listed else outcome

    async def _ask_robots(self, host: _Host, target: Target) -> None:
        assert self._robots is not None
        robots = await self._robots.ask(target)
        now = time.monotonic()
        self._asking_robots -= 1
        host.held = False
        if (
            robots.problem is not None
            and robots.problem[0] in _ROBOTS_AGAIN
            and host.robots_tries < self._config.retries
        ):
            host.pace.paused_until = max(host.pace.paused_until, now + self._wait_s(host.robots_tries))
            host.robots_tries += 1
        else:
            host.robots_tries = 0
            self._robots.remember(target, robots)
        if self._waiting_for_robots:
            other = self._waiting_for_robots.popleft()
            other.held = False
            self._queue(other, now)
        self._queue(host, now)

    def _has_room(self) -> bool:
        """Return whether one more body could be held; those on their way count as much as the last ones did."""
        with self._lock:
            room = self._held_bytes + self._in_flight * self._usual_bytes < self._lookahead
            self._waits_for_room = not room
        return room

    def _due_turn(self, loop: EventLoop, now: float) -> _Turn | None:
        """Return the next download that may start; start to ask the hosts on the way to it for their robots.txt."""
        while self._heap and self._heap[0][0] <= now:
            _, number, host = heapq.heappop(self._heap)
            if number != host.entry:
                continue
            host.entry = None
            due = self._due(host, now)
            if due is None or due > now:  # paused since it was queued
                self._queue(host, now)
                continue
            job = self._pop(host, now)
            if job is None:
                self._queue(host, now)
                continue
            robots = None
            if self._robots is not None:
                robots = self._robots.known(job.target)
                if robots is None:
                    heapq.heappush(host.again, (0.0, next(self._numbers), job))
                    host.held = True
                    if self._asking_robots >= self._config.threads:
                        self._waiting_for_robots.append(host)
                        continue
                    self._asking_robots += 1
                    self._advance(host, now)
                    loop.start(self._ask_robots(host, job.target))
                    continue
                host.pace.crawl_delay_s = min(robots.crawl_delay_s or 0.0, self._config.max_crawl_delay_s)
            host.active += 1
            self._in_flight += 1
            self._advance(host, now)
            self._queue(host, now)
            return _Turn(host, job, robots)
        return None

    def _pop(self, host: _Host, now: float) -> _Job | None:
        """Return the host's next attempt; None where the row turns out to be of another host, or of none."""
        if host.again and (host.again[0][0] <= now or host.at == host.stop):
            return heapq.heappop(host.again)[2]
        row = int(self._order[host.at])
        host.at += 1
        if self._listed is not None and self._listed[row]:
            self._finish(row, Refused(BLOCKLIST, ""))
            return None
        try:
            job = _Job(row, self._target(row))
        except Refused as refused:
            self._finish(row, refused)
            return None
        if job.target.host == host.name:
            return job
        self._put(job, now, now)
        return None

    def _put(self, job: _Job, due: float, now: float) -> None:
        """Put an attempt into the queue of the host it leads to."""
        name = job.target.host
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = _Host(name, self._paces.of(name))
        heapq.heappush(host.again, (due, next(self._numbers), job))
        self._queue(host, now)

    def _target(self, row: int) -> Target:
        return self._fetcher.target(self._urls[row].as_py())

    def _interval(self, host: _Host) -> float:
        return max(self._interval_s, host.pace.crawl_delay_s)

    def _advance(self, host: _Host, now: float) -> None:
        host.pace.next_at = max(host.pace.next_at, now) + self._interval(host)

    def _due(self, host: _Host, now: float) -> float | None:
        """Return when the host may be asked for its next row; None where it has none, or may not have one more now."""
        if host.held or host.active >= self._connections:
            return None
        if host.at < host.stop:
            first = now
        elif host.again:
            first = host.again[0][0]
        else:
            return None
        return max(first, host.pace.next_at, host.pace.paused_until)

    def _queue(self, host: _Host, now: float) -> None:
        due = None if host.entry is not None else self._due(host, now)
        if due is not None:
            host.entry = next(self._numbers)
            heapq.heappush(self._heap, (due, host.entry, host))

    def _settle(self, turn: _Turn, outcome: Fetched | Moved | Refused) -> None:
        host, job = turn.host, turn.job
        now = time.monotonic()
        host.active -= 1
        self._in_flight -= 1
        if isinstance(outcome, Fetched):
            host.pace.strikes = 0
            self._finish(job.row, outcome.body, outcome.url if job.hops else "")
        elif isinstance(outcome, Moved):
            self._move(job, outcome, now)
        elif isinstance(outcome, _Unasked):
            host.pace.next_at -= self._interval(host)
            host.entry = None  # its turn is earlier now
            self._finish(job.row, outcome)
        else:
            if isinstance(outcome, Later):
                self._pause(host, outcome, now)
            self._refused(job, outcome, now)
        self._queue(host, now)

    def _move(self, job: _Job, moved: Moved, now: float) -> None:
        if job.hops == self._config.max_redirects:
            self._finish(job.row, Refused(TOO_MANY_REDIRECTS, str(self._config.max_redirects)))
            return
        try:
            target = self._fetcher.target(moved.url)
        except Refused as refused:
            self._finish(job.row, refused)
            return
        job.target, job.hops = target, job.hops + 1
        self._put(job, now, now)

    def _refused(self, job: _Job, refused: Refused, now: float) -> None:
        if refused.reason not in _AGAIN or job.tries == self._config.retries:
            self._finish(job.row, refused)
            return
        # a second attempt starts from the link, not from where it led
        self._put(_Job(job.row, self._target(job.row), tries=job.tries + 1), now + self._wait_s(job.tries), now)

    def _wait_s(self, tries: int) -> float:
        return min(self._config.retry_wait_s * 2.0 ** min(tries, 20), _LONGEST_BACKOFF_S)

    def _pause(self, host: _Host, later: Later, now: float) -> None:
        """Stay away from a host that asks for it; where it asks for more time than the unit has, give its rows up."""
        wait_s = max(later.retry_after_s, self._wait_s(host.pace.strikes))
        host.pace.strikes += 1
        host.pace.paused_until = max(host.pace.paused_until, now + wait_s)
        if wait_s > self._config.host_wait_s - self._idle_s:
            self._give_up(host, f"asks to wait {wait_s:g} s")

    def _give_up(self, host: _Host, detail: str) -> None:
        rows = [int(row) for row in self._order[host.at : host.stop]] + [job.row for _, _, job in host.again]
        host.at = host.stop
        host.again.clear()
        for row in rows:
            self._finish(row, Refused(HOST_BUSY, detail))

    def _finish(self, row: int, outcome: bytes | Refused, final_url: str = "") -> None:
        if isinstance(outcome, Refused):
            size, result = 0, Result(row, None, outcome.reason, outcome.detail)
        else:
            size, result = len(outcome), Result(row, outcome, final_url=final_url)
            self._usual_bytes += (size - self._usual_bytes) / 8
        self._open -= 1
        with self._lock:
            self._done.append(result)
            self._held_bytes += size
            self._ready.notify()

    # A unit must not last for ever: the time counts in which a download could start, but no host may be asked.

    def _count_idle(self, now: float, *, idle: bool) -> None:
        if self._idle_since is not None and not idle:
            self._idle_s += now - self._idle_since
            self._idle_since = None
        elif self._idle_since is None and idle:
            self._idle_since = now

    def _idle_until(self, now: float) -> float:
        """Return when something is due; give the waiting rows up when the unit has waited long enough."""
        self._count_idle(now, idle=True)
        due = self._heap[0][0] if self._heap else math.inf
        if self._open == self._in_flight:
            return due
        idle_s = self._idle_s + now - (now if self._idle_since is None else self._idle_since)
        left = self._config.host_wait_s - idle_s
        if left <= 0:
            for host in self._hosts.values():
                self._give_up(host, f"the unit has waited {self._config.host_wait_s:g} s for this host and others")
            return now
        return min(due, now + left)


class _Unasked(Refused):
    """A refusal for which the host was not asked: it does not cost a turn."""
