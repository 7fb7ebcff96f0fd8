"""The outbox of metrics for MLflow: a JSON-lines file between the training loop and the tracking server.

The loop appends a line and continues; one thread reads the file and ships it. So an outage of any length only takes
disk space: it does not block or end the training, and no point is lost. This module never imports mlflow.

Durability when appending: a line is passed to the operating system in one `write`, so that it survives SIGKILL of the
process at once, but not a power loss. It is never fsynced in the loop. `sync()` fsyncs (call it with a checkpoint), and
the shipping thread does so before it marks lines as shipped. So lines that a power loss removes are shipped already or
belong to steps that are trained again.

Replay: a line has its own time, and a step that is trained again after a restart gets the time of its first record.
MLflow's key of a point is (run, key, time, step, value), so shipping a line again, or the same point from a repeated
step, adds nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from altdiffusion.errors import first_line

log = logging.getLogger(__name__)

CHUNK_BYTES = 256 << 10  # part of one file that the shipping thread holds in memory at a time
MAX_LINE_BYTES = 8 << 20  # a longer line is damage, not data
TAIL_BYTES = 8 << 20  # end of a reopened outbox that is searched for steps that may be trained again

Record = dict[str, Any]


class JsonLines:
    """The writer of one file. It appends whole lines and never raises an exception.

    A record that cannot be written (full disk, missing folder) is dropped and counted in `lost`; a warning is logged
    once.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.lost = 0
        self._warned = False
        self._torn = False  # whether the file does not end in a newline: a writer died, or the disk was full
        self._descriptor = -1
        self._open()

    def _open(self) -> None:
        try:
            os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # `job_run.is_running` asks for it
            size = os.fstat(self._descriptor).st_size
            self._torn = size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"
        except OSError as error:
            self._warn(error)

    def append(self, record: Mapping[str, Any]) -> bool:
        """Write one line and return whether it was written."""
        try:
            line = json.dumps(record, separators=(",", ":"), default=str).encode() + b"\n"
            if self._descriptor < 0:
                self._open()
            if self._descriptor < 0:
                self.lost += 1
                return False
            if self._torn:
                line = b"\n" + line  # the torn line stays alone and is skipped by the reader
            written = os.write(self._descriptor, line)
            self._torn = written < len(line)
            if self._torn:
                raise OSError(f"only {written} of {len(line)} bytes were written")
            return True
        except (OSError, TypeError, ValueError) as error:
            self.lost += 1
            self._warn(error)
            return False

    def sync(self) -> None:
        """Write the file to disk, so that it survives a power loss. It takes milliseconds; call it per checkpoint."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.fsync(self._descriptor)

    def close(self) -> None:
        self.sync()
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
        self._descriptor = -1

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            log.warning("outbox %s: a record was dropped (%s); the job continues", self.path, error)


class MetricOutbox:
    """The training loop's side (rank 0): `append` takes tens of microseconds and never raises an exception."""

    def __init__(self, path: str) -> None:
        self._first_time = _times_of_steps(path)
        self._lines = JsonLines(path)

    @property
    def path(self) -> str:
        return self._lines.path

    @property
    def lost(self) -> int:
        """Record that could not be written."""
        return self._lines.lost

    def append(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """Record `metrics` (name -> number; NaN and infinities are allowed) at `step`."""
        values: dict[str, float] = {}
        for key, value in metrics.items():
            with contextlib.suppress(TypeError, ValueError):  # a value that is not a number must not end the training
                values[key] = float(value)
        moment = self._first_time.get(step) or time.time_ns() // 1_000_000
        self._lines.append({"step": int(step), "time_ms": moment, "metrics": values})

    def sync(self) -> None:
        self._lines.sync()

    def close(self) -> None:
        self._lines.close()


def _times_of_steps(path: str) -> dict[int, int]:
    """Return step -> time (ms) of its first record, from the end of an existing file."""
    times: dict[int, int] = {}
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            for line in file.read(TAIL_BYTES).splitlines():  # bounded: the path may be a device
                record = _parse(line)
                if record is not None and isinstance(record.get("step"), int):
                    times.setdefault(record["step"], int(record.get("time_ms", 0)))
    except OSError:
        pass
    return times


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # torn, or nested too deeply
        return None
    return record if isinstance(record, dict) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Whole lines read from an outbox, and the file offset after them."""

    records: list[Record]
    end: int


class OutboxReader:
    """The reader: it reads whole lines, CHUNK_BYTES at a time, from the offset that `commit` stored next to the file.

    With `remember=False`, which is meant for a replay, it reads from the start and does not store an offset.
    """

    def __init__(self, path: str, *, remember: bool = True) -> None:
        self.path = path
        self.damaged = 0  # lines that are not JSON: torn by a kill
        self._remember = remember
        self._offset_path = path + ".offset"
        self._offset = self._stored_offset() if remember else 0

    def _stored_offset(self) -> int:
        try:
            with open(self._offset_path, "rb") as file:
                offset = int(json.loads(file.read())["offset"])
            return (
                offset if 0 <= offset <= os.path.getsize(self.path) else 0
            )  # another file, which is shipped from its start
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def read(self) -> Chunk | None:
        """Return the next whole lines, or None if there are none yet; until `commit`, return the same lines again."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._offset)
                data = file.read(CHUNK_BYTES)
                while b"\n" not in data and len(data) < MAX_LINE_BYTES:
                    more = file.read(CHUNK_BYTES)
                    if not more:
                        return None  # the line is still being written or was torn by a kill; the next writer ends it
                    data += more
        except OSError:
            return None
        whole = data[: data.rfind(b"\n") + 1] or data
        records = []
        for line in whole.splitlines():
            record = _parse(line)
            if record is not None:
                records.append(record)
            elif line.strip():
                self.damaged += 1
        return Chunk(records=records, end=self._offset + len(whole))

    def commit(self, end: int) -> None:
        """Mark everything before `end` as shipped. The outbox is fsynced first, and the mark is replaced atomically.

        The mark need not be durable: with an older mark, lines are only shipped again, which adds nothing.
        """
        self._offset = end
        if not self._remember:
            return
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            temporary = f"{self._offset_path}.{os.getpid()}.tmp"
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            with open(os.open(temporary, flags, 0o644), "w", encoding="utf-8") as file:
                json.dump({"offset": end}, file)
            os.replace(temporary, self._offset_path)
        except OSError as error:
            log.warning("outbox %s: the offset of the shipped lines could not be stored (%s)", self.path, error)


Send = Callable[[Sequence[Record]], None]
"""Ships records and handles the ones that the receiver refuses. After an exception, shipping is tried again later."""


class Shipper:
    """The one shipping thread of a process: it sends outboxes to their receivers, in the order of `add`.

    Memory is bounded by one chunk. After a failure it waits 0.5 s, then twice as long each time, up to `max_wait_s`.
    """

    def __init__(self, *, interval_s: float = 1.0, max_wait_s: float = 30.0) -> None:
        self._routes: list[tuple[OutboxReader, Send]] = []
        self._interval = interval_s
        self._max_wait = max_wait_s
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._abandoned = threading.Event()  # set when `stop` gave up: the thread ends after its current try
        self._thread: threading.Thread | None = None
        self._failures = 0
        self.last_error: Exception | None = None

    def add(self, reader: OutboxReader, send: Send) -> None:
        """Add an outbox; the first one starts the thread."""
        if all(reader.path != known.path for known, _ in self._routes):
            self._routes = [*self._routes, (reader, send)]
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="metric-shipper", daemon=True)
            self._thread.start()
        self._wake.set()

    def wake(self) -> None:
        """Let the thread ship now instead of at the next interval (not during the wait after a failure)."""
        self._wake.set()

    def drained(self) -> bool:
        """Return whether no whole line is waiting (a torn last line does not count)."""
        return all(reader.read() is None for reader, _ in self._routes)

    def stop(self, timeout_s: float) -> bool:
        """Ship the rest for at most `timeout_s` and return whether everything was shipped; the files keep the rest."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        self._abandoned.set()
        return self.drained()

    def _loop(self) -> None:
        while not self._abandoned.is_set():
            stopping = self._stopping.is_set()  # read first, so that this round has all that precedes `stop`
            if self._ship_all():
                self._failures = 0
                if stopping:
                    return
                self._wake.wait(self._interval)
                self._wake.clear()
            else:
                self._failures += 1
                if stopping:  # quick tries until `stop` gives up
                    self._abandoned.wait(0.5)
                else:
                    self._stopping.wait(min(self._max_wait, 0.5 * 2.0 ** min(self._failures - 1, 10)))

    def _ship_all(self) -> bool:
        for reader, send in self._routes:
            while (chunk := reader.read()) is not None:
                try:
                    send(chunk.records)
                except Exception as error:  # no exception may end the thread
                    if self._failures == 0:
                        log.warning("outbox %s waits: %s", reader.path, first_line(error))
                    self.last_error = error
                    return False
                reader.commit(chunk.end)
        if self._failures:
            log.warning("shipping continues after %d failed tries", self._failures)
        return True
