"""Names the rank that stalls.

    <lake>/checkpoints/<run>/ranks/00003.json    the last sign of life of rank 3: host, process, step, place in the code

In a step all ranks wait for each other, so one that hangs stops all of them, and none of them knows which. Therefore a
thread of every rank writes where its loop is, and the threads of the first two ranks read it. A rank whose thread is
silent was stopped, or its machine is gone. If all threads live and no step ends, the ranks that do not wait for others
are named. The rank that notices it ends its own process: connections break, and the supervisor (Ray, torchrun)
restarts all ranks.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from altdiffusion.storage import files
from altdiffusion.storage.documents import Document, read_document
from altdiffusion.training.checkpoints.format import run_folder
from altdiffusion.training.waiting import is_waiting

FOLDER = "ranks"
SLOW = 5.0
"""How many times as long as the slowest step so far a step may take, where that is more than the setting."""
LATE = 2.5
"""Beats without a sign after which a rank counts as late: nothing more is known of it."""
EXIT_STATUS = 75
WATCHERS = 2


@dataclass(frozen=True, kw_only=True)
class Sign:
    """The last sign of life of a rank."""

    rank: int
    host: str
    process: int
    step: int
    since: float
    """Seconds since 1970: when the step began."""
    place: str
    """Innermost line of this package that the loop is in."""
    waiting: bool
    """Whether the loop waits for other ranks there."""
    count: int

    def who(self) -> str:
        """Return the rank, its process and what it has been doing since when, in words."""
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(self.since))
        return (
            f"rank {self.rank} on host {self.host} (process {self.process}) has been in step {self.step} "
            f"since {moment} UTC, at {self.place}"
        )


def _sign(record: Document) -> Sign:
    return Sign(
        rank=record.count("rank"),
        host=record.text("host"),
        process=record.count("process"),
        step=record.count("step"),
        since=record.number("since"),
        place=record.text("place"),
        waiting=record.flag("waiting"),
        count=record.count("count"),
    )


class Watch:
    """Signs of life of this rank, and a look at those of the others. Use it as a context manager around the steps.

    Args:
        timeout_s: time without a sign, or without the end of a step, after which a rank is named.
        step: with which the loop begins.
        report: called with a text that names the ranks that stall.
        end: called after that; by default it ends the process.
    """

    def __init__(
        self, lake: str, run: str, *, rank: int, world: int, timeout_s: float, step: int,
        report: Callable[[str], None], end: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        self._folder = files.within(run_folder(lake, run), FOLDER)
        self._rank, self._world, self._timeout_s = rank, world, timeout_s
        self._report, self._end = report, end or (lambda: os._exit(EXIT_STATUS))
        self._beat_s = min(timeout_s / 5, 60.0)
        self._loop = threading.get_ident()
        self._step, self._since, self._moment = step, time.time(), time.monotonic()
        self._began = time.monotonic()
        self._slowest = 0.0
        self._steps = 0
        self._count = 0
        self._seen: dict[int, tuple[Sign, float]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        if self._world > 1:
            with contextlib.suppress(Exception):  # the thread tries again
                self._beat()  # at once, so that a rank that stops soon can be named
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def step(self, step: int) -> None:
        """Note that the loop begins a step."""
        now = time.monotonic()
        if self._steps > 1:  # the first has compiled kernels and filled caches
            self._slowest = max(self._slowest, now - self._moment)
        self._step, self._since, self._moment, self._steps = step, time.time(), now, self._steps + 1

    def _run(self) -> None:
        while not self._stop.wait(self._beat_s):
            try:
                self._beat()
                named = self._look() if self._rank < WATCHERS else None
            except Exception:  # storage that is away for a moment is not a stalled rank
                continue
            if named and not self._stop.is_set():
                self._report(named)
                self._end()
                return

    def _beat(self) -> None:
        self._count += 1
        sign = {
            "rank": self._rank, "host": socket.gethostname(), "process": os.getpid(), "step": self._step,
            "since": self._since, "place": self._place(),
            "waiting": is_waiting(self._loop), "count": self._count,
        }  # fmt: skip
        files.write_atomic(files.join(self._folder, f"{self._rank:05d}.json"), files.canonical_json(sign))

    def _look(self) -> str | None:
        """Return a text that names the ranks that stall, if any does."""
        now, limit = time.monotonic(), max(self._timeout_s, SLOW * self._slowest)
        silent: list[str] = []
        for rank in range(self._world):
            if rank == self._rank:
                continue
            try:
                sign = _sign(read_document(files.within(self._folder, f"{rank:05d}.json")))
            except FileNotFoundError:
                if now - self._began > limit:
                    silent.append(f"rank {rank} has given no sign of life at all")
                continue
            before = self._seen.get(rank)
            if before is None or before[0].count != sign.count or before[0].process != sign.process:
                self._seen[rank] = (sign, now)
            elif now - before[1] > limit:
                silent.append(f"{sign.who()}, and gives no sign of life")
            else:
                self._seen[rank] = (sign, before[1])
        if silent:
            return "; ".join(silent)
        late = any(now - seen > LATE * self._beat_s for _, seen in self._seen.values())
        if self._steps > 1 and now - self._moment > limit and not late:  # a late rank will soon be silent
            signs = [sign for sign, _ in self._seen.values() if sign.step <= self._step]
            stalled = [sign for sign in signs if not sign.waiting]
            if stalled or is_waiting(self._loop):
                named = "; ".join(sign.who() for sign in stalled) or "all ranks wait for each other"
                return f"no step has ended for {now - self._moment:.0f} s: {named}"
        return None

    def _place(self) -> str:
        frame: Any = sys._current_frames().get(self._loop)
        while frame is not None:
            if "altdiffusion" in frame.f_code.co_filename and frame.f_code.co_filename != __file__:
                return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} {frame.f_code.co_name}"
            frame = frame.f_back
        return "its end"
