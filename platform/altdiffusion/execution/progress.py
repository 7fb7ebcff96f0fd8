"""A line of progress, which is redrawn on a terminal and repeated every few seconds in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from altdiffusion.errors import AltDiffusionError
from altdiffusion.monitoring.catalogue import ROWS_UNFINISHED
from altdiffusion.monitoring.record import set_to
from altdiffusion.terminal import control

LOG_EVERY_S = 5.0
QUIET_EVERY_S = 30.0
DRAW_EVERY_S = 0.5
COUNT_EVERY_S = 5.0
"""How often rows inside of unfinished units are counted."""


def duration(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class Progress:
    """The line of a pipeline step, as in `[download] 12/40 units  1,234 images  98.1 images/s  0:00:31 left`.

    Use it as a context manager around the work. A thread repeats the line, so that a log also shows that a job waits.
    The rate is that of this invocation: units found in the ledger count as done, and do not enter the rate.

    Rows of unfinished units are part of the line where `count_unfinished` was called.
    """

    def __init__(self, label: str, *, rows_name: str = "rows", stream: TextIO | None = None) -> None:
        self.label = label
        self.total_units = 0
        self.rows_name = rows_name
        self._stream = stream if stream is not None else sys.stderr
        self._terminal = self._stream.isatty()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._started = time.monotonic()
        self._shown_at = 0.0
        self._shown = (-1, -1)
        self._skipped = 0
        self._done = 0
        self._rows = self._kept = 0
        self._count: Callable[[], int] | None = None
        self._inside = self._found = 0
        self._counted_at = 0.0
        self._explain: Callable[[], str] | None = None
        self._waits_for = ""

    @property
    def step(self) -> str:
        """The pipeline step: the first word of the label."""
        return self.label.partition(" ")[0]

    def count_unfinished(self, count: Callable[[], int]) -> None:
        """Have the rows of unfinished units counted every few seconds.

        Args:
            count: returns their number; it is called in a thread.
        """
        self._count = count

    def explain_start(self, explain: Callable[[], str]) -> None:
        """Have the line state what the work waits for until its first unit is finished.

        Args:
            explain: returns it, empty where nothing is missing; it is called in a thread.
        """
        self._explain = explain

    def begin(self, total_units: int, skipped_units: int = 0) -> None:
        """Set the number of units and of those that need no work, and start the clock."""
        found = self._count() if self._count is not None else 0
        with self._lock:
            self._inside = self._found = found
            self.total_units = total_units
            self._skipped, self._done, self._rows, self._kept = skipped_units, 0, 0, 0
            self._started = self._shown_at = time.monotonic()
            self._shown = (-1, -1)
        self._show()

    def advance(self, rows: int, kept: int | None = None, units: int = 1) -> None:
        """Count finished units, the rows that they read and the rows that they kept (None: all of them)."""
        with self._lock:
            self._done += units
            self._rows += rows
            self._inside = max(self._inside - rows, 0)  # the next count no longer has these units' rows
            self._kept += rows if kept is None else kept
        now = time.monotonic()
        if now - self._shown_at >= (DRAW_EVERY_S if self._terminal else LOG_EVERY_S):
            self._show()

    def line(self, now: float | None = None) -> str:
        """Return the line as it would be printed."""
        with self._lock:
            elapsed = max((time.monotonic() if now is None else now) - self._started, 1e-9)
            finished = self._skipped + self._done
            head = f"[{self.label}] {finished}/{self.total_units} units"
            inside = self._inside if finished < self.total_units else 0
            seen = self._rows + inside
            if not self._done and not inside:
                if finished == self.total_units:
                    return f"{head}  nothing left to do"
                waits = f", {self._waits_for}" if self._waits_for else ""
                return f"{head}  starting{waits}" + (f", {duration(elapsed)} so far" if elapsed >= 1 else "")
            made = max(seen - self._found, 0)
            rows = f"{seen:,} {self.rows_name}  {made / elapsed:,.1f} {self.rows_name}/s"
            if self._kept < self._rows:
                rows += f"  {self._kept / self._rows:.1%} kept"
            if finished >= self.total_units:
                return f"{head}  {rows}  in {duration(elapsed)}"
            if not self._done:
                return f"{head}  {rows}  {duration(elapsed)} so far"
            left = elapsed / (self._done * seen / self._rows if self._rows else self._done)  # of one unit
            return f"{head}  {rows}  {duration(left * (self.total_units - finished))} left"

    def __enter__(self) -> Progress:
        self._stop.clear()
        self._thread = threading.Thread(target=self._tick, name=f"progress-{self.label}", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._show(last=True)

    def _tick(self) -> None:
        while not self._stop.wait(DRAW_EVERY_S):
            self._count_inside()
            self._look_at_start()
            if self._terminal or time.monotonic() - self._shown_at >= QUIET_EVERY_S:
                self._show()

    def _count_inside(self) -> None:
        now = time.monotonic()
        if self._count is None or now - self._counted_at < COUNT_EVERY_S:
            return
        self._counted_at = now
        try:
            inside = self._count()
        except AltDiffusionError:  # storage that does not answer for a moment; the work itself reports a lasting fault
            return
        with self._lock:
            self._inside = inside
        set_to(ROWS_UNFINISHED, inside, step=self.step)

    def _look_at_start(self) -> None:
        if self._explain is not None and not self._done and not self._inside:
            waits_for = self._explain()
            with self._lock:
                self._waits_for = waits_for

    def _show(self, last: bool = False) -> None:
        text = self.line()
        with self._lock:
            state = (self._skipped, self._done)
            if last and not self._terminal and state == self._shown:
                return
            self._shown, self._shown_at = state, time.monotonic()
            if self._terminal:
                control(self._stream, f"\r{text}\x1b[K" + ("\n" if last else ""))
            else:
                self._stream.write(f"{text}\n")
            self._stream.flush()
