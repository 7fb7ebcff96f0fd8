"""Where the CPU of a download goes: by thread and process, and within the fetching thread by part.

CPU seconds are those that the kernel counts per thread. The shares of the parts come from a second run under Python's
profiler, which slows small functions more than large ones: they are estimates.
"""

from __future__ import annotations

import collections
import contextlib
import cProfile
import json
import pstats
import resource
import threading
import time
from collections.abc import Iterator
from typing import Any

_PARTS = (
    ("TLS", ("_ssl.", "ssl.py")),
    ("headers", ("web/answers.py", "re.Pattern", "optout.py")),
    ("sockets", ("_socket.", "socket.py", "select.epoll", "connections.py", "event_loop.py")),
    ("links, robots.txt, turns", ("",)),
)


class Report:
    """CPU seconds by what they went to."""

    def __init__(self) -> None:
        self.profile: cProfile.Profile | None = None
        self._start_s = 0.0
        self.threads: collections.Counter[str] = collections.Counter()

    def started(self) -> None:
        """Note that the program is about to begin its first unit."""
        self._start_s = time.process_time()

    def line(self) -> str:
        """Return the seconds by part, and the shares of the fetching thread's where they were profiled, as JSON."""
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = {
            "start": self._start_s,
            "fetch": self.threads["fetch"],
            "names": self.threads["names"],
            "hand-over": self.threads["settle"],
            "write": time.process_time() - self._start_s - sum(self.threads.values()),
            "decode": children.ru_utime + children.ru_stime,
        }
        return json.dumps({"seconds": seconds, "shares": _shares(self.profile) if self.profile else {}})


@contextlib.contextmanager
def profiled(*, parts: bool) -> Iterator[Report]:
    """Count for the length of the block; with `parts` what the fetching thread does as well."""
    report = Report()
    if parts:
        report.profile = cProfile.Profile(time.thread_time)
    run = threading.Thread.run

    def counted(thread: threading.Thread) -> None:
        try:
            if report.profile is not None and thread.name == "fetch":
                report.profile.runcall(run, thread)
            else:
                run(thread)
        finally:
            report.threads[thread.name.partition("_")[0]] += time.thread_time()

    threading.Thread.run = counted  # type: ignore[method-assign]
    try:
        yield report
    finally:
        threading.Thread.run = run  # type: ignore[method-assign]
        for thread in threading.enumerate():
            if thread.name == "names" and thread.ident is not None:
                report.threads["names"] += time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def show(line: str, shares: str) -> None:
    """Print a line per part, from a run and from another one under the profiler."""
    seconds = json.loads(line)["seconds"]
    for name, value in seconds.items():
        print(f"{'':19}{name:30}{value:8.2f} s")
        for part, share in json.loads(shares)["shares"].items() if name == "fetch" else ():
            print(f"{'':21}{part:28}{share * value:8.2f} s")


def _shares(profile: cProfile.Profile) -> dict[str, float]:
    shares: collections.Counter[str] = collections.Counter()
    stats: dict[tuple[str, int, str], tuple[Any, ...]] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    for (file, _, function), (_, _, own, *_) in stats.items():
        where = f"{file} {function}"
        shares[next(name for name, marks in _PARTS if any(mark in where for mark in marks))] += own
    total = sum(shares.values())
    return {name: shares[name] / total for name, _ in _PARTS}
