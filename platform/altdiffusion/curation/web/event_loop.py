"""One thread for thousands of sockets: coroutines that run until they would have to wait.

A coroutine waits by `until_ready`, for a socket or for what another thread will bring, and never beyond the moment
that it names. The loop is small because a download needs nothing else: no transports, no buffers, no callbacks. Every
socket is tried first and waited for only where it has nothing yet, so it is registered once (edge-triggered epoll).
"""

from __future__ import annotations

import collections
import contextlib
import heapq
import itertools
import math
import os
import select
import socket
import threading
import time
import types
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, TypeVar, cast

T = TypeVar("T")
_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_LONGEST_WAIT_S = 60.0


class Pending:
    """What another thread brings: coroutines of any loop wait for it by `until_ready`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self.is_done = False

    def done(self) -> None:
        """Wake all that wait for it."""
        with self._lock:
            self.is_done = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def when_done(self, callback: Callable[[], None]) -> None:
        """Have a callback called by the thread that calls `done`; at once where that has happened."""
        with self._lock:
            if not self.is_done:
                self._callbacks.append(callback)
                return
        callback()


@types.coroutine
def until_ready(what: socket.socket | Pending, end: float) -> Generator[Any, None, None]:
    """Wait until something has changed about a socket, or something pending is done.

    Args:
        end: in seconds of time.monotonic().

    Raises:
        TimeoutError: it is `end`.
    """
    yield what, end


async def give_way() -> None:
    """Let the other coroutines of the loop run."""
    done = Pending()
    done.done()
    await until_ready(done, math.inf)


async def elsewhere(work: Callable[[], T], end: float) -> T:
    """Return what a function returns that takes long, without holding the loop: a thread of its own calls it.

    Args:
        end: in seconds of time.monotonic(); the thread is left behind then.

    Raises:
        TimeoutError: it is `end`.
    """
    pending = Pending()
    outcome: list[tuple[T | None, BaseException | None]] = []

    def run_work() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:
            outcome.append((None, error))
        pending.done()

    threading.Thread(target=run_work, name="elsewhere", daemon=True).start()
    await until_ready(pending, end)
    result, problem = outcome[0]
    if problem is not None:
        raise problem
    return cast(T, result)


class _Task:
    """A coroutine, what it waits for, and when it has waited long enough."""

    __slots__ = ("coroutine", "descriptor", "end", "timer", "wait")

    def __init__(self, coroutine: Coroutine[Any, None, None]) -> None:
        self.coroutine = coroutine
        self.descriptor: int | None = None
        self.end = math.inf
        self.timer = math.inf
        """When the loop looks at it next: at `end` or before, without a new entry for each wait."""
        self.wait = 0
        """Number of this wait: what was pending before wakes nobody now."""


class EventLoop:
    """Runs coroutines in the thread that calls `turn`, for the length of a `with` block, whose end closes them."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._alarm = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._alarm, select.EPOLLIN)
        self._tasks: set[_Task] = set()
        self._waiting: dict[int, _Task] = {}
        self._timers: list[tuple[float, int, _Task]] = []
        self._numbers = itertools.count()
        self._runnable: collections.deque[tuple[_Task, int]] = collections.deque()
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> EventLoop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in list(self._tasks):
            task.coroutine.close()
        with self._lock:
            self._closed = True
            self._epoll.close()
            os.close(self._alarm)

    def start(self, coroutine: Coroutine[Any, None, None]) -> None:
        """Run a coroutine to its first wait. What it raises, now or later, ends the loop."""
        task = _Task(coroutine)
        self._tasks.add(task)
        self._step(task)

    def wake(self) -> None:
        """End the wait of `turn`, from any thread."""
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._alarm, 1)

    def turn(self, until: float = math.inf) -> None:
        """Wait until there is something to run, or until a moment, or a call of `wake`; and run it.

        Args:
            until: in seconds of time.monotonic().
        """
        nearest = min(until, self._timers[0][0] if self._timers else math.inf)
        wait_s = 0.0 if self._runnable else min(max(nearest - time.monotonic(), 0.0), _LONGEST_WAIT_S)
        for descriptor, _ in self._epoll.poll(wait_s):
            if descriptor == self._alarm:
                os.eventfd_read(self._alarm)
            elif (task := self._waiting.get(descriptor)) is not None:
                self._step(task)
        for _ in range(len(self._runnable)):  # what gives way runs in the next turn, behind the sockets
            task, wait = self._runnable.popleft()
            if task.wait == wait:
                self._step(task)
        self._time_out(time.monotonic())

    def _time_out(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            _, _, task = heapq.heappop(self._timers)
            task.timer = math.inf
            if task not in self._tasks:
                continue
            if task.end <= now:
                self._step(task, TimeoutError())
            else:
                self._look_again(task)

    def _step(self, task: _Task, error: BaseException | None = None) -> None:
        """Run a task to its next wait."""
        if task.descriptor is not None:
            del self._waiting[task.descriptor]
            task.descriptor = None
        task.end = math.inf
        task.wait += 1
        try:
            what, end = task.coroutine.send(None) if error is None else task.coroutine.throw(error)
        except StopIteration:
            self._tasks.discard(task)
            return
        except BaseException:
            self._tasks.discard(task)
            raise
        task.end = end
        if isinstance(what, Pending):
            what.when_done(lambda wait=task.wait: self._run_again(task, wait))  # type: ignore[misc]
        else:
            task.descriptor = what.fileno()
            self._waiting[task.descriptor] = task
            with contextlib.suppress(FileExistsError):
                self._epoll.register(task.descriptor, _EVENTS)
        self._look_again(task)

    def _look_again(self, task: _Task) -> None:
        if task.end < task.timer and task.end < math.inf:
            task.timer = task.end
            heapq.heappush(self._timers, (task.end, next(self._numbers), task))

    def _run_again(self, task: _Task, wait: int) -> None:
        self._runnable.append((task, wait))
        self.wake()


def run(coroutine: Coroutine[Any, None, T]) -> T:
    """Run one coroutine to its end, in this thread; return what it returns."""
    results: list[T] = []

    async def whole() -> None:
        results.append(await coroutine)

    with EventLoop() as loop:
        loop.start(whole())
        while not results:
            loop.turn()
    return results[0]
