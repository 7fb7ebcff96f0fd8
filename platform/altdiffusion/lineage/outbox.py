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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from altdiffusion.errors import first_line
from altdiffusion.monitoring.catalogue import OUTBOX_BYTES, OUTBOX_FAILED_TRIES
from altdiffusion.monitoring.record import set_to

log = logging.getLogger(__name__)

CHUNK_BYTES = 256 << 10  # part of one file that the shipping thread holds in memory at a time
MAX_LINE_BYTES = 8 << 20  # a longer line is damage, not data
_SHOWN_NAMES = 8
MAX_IN_MEMORY = 10_000  # records of a journal that a full disk did not take
MAX_DENIED = 4  # tries after which a receiver that refuses access is left alone
LAST_WAIT_S = 8.0  # longest wait between two tries once the job has ended
TAIL_BYTES = 8 << 20  # end of a reopened outbox that is searched for steps that may be trained again

Record = dict[str, Any]


@dataclass(kw_only=True)
class Losses:
    """The records of one file that could not be written, by what they were."""

    records: int = 0
    names: dict[str, int] = field(default_factory=dict)
    """Metric, or kind of record, -> how many were lost."""
    steps: tuple[int, int] | None = None
    """First and last step."""

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in one record."""
        self.records += 1
        metrics = record.get("metrics")
        for name in metrics if "op" not in record and isinstance(metrics, dict) else [_kind(record)]:
            self.names[name] = self.names.get(name, 0) + 1
        step = record.get("step")
        if isinstance(step, int):
            first, last = self.steps or (step, step)
            self.steps = min(first, step), max(last, step)

    def __str__(self) -> str:
        shown = [f"{count} of {name}" for name, count in list(self.names.items())[:_SHOWN_NAMES]]
        more = len(self.names) - len(shown)
        where = f", steps {self.steps[0]:,} to {self.steps[1]:,}" if self.steps else ""
        return f"{self.records:,} records{where} ({', '.join(shown)}{f' and {more} more' if more else ''})"


def _kind(record: Mapping[str, Any]) -> str:
    about = record.get("ref") or record.get("key") or record.get("path") or record.get("status")
    return f"{record.get('op', 'record')} {about}" if about else str(record.get("op", "record"))


class JsonLines:
    """The writer of one file. It appends whole lines and never raises an exception.

    A record that cannot be written (full disk, missing folder) is dropped and added to `losses`. A warning is logged
    once, and `report_losses` states what was lost.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.losses = Losses()
        self._reported = 0
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
                self.losses.add(record)
                return False
            if self._torn:
                line = b"\n" + line  # the torn line stays alone and is skipped by the reader
            written = os.write(self._descriptor, line)
            self._torn = written < len(line)
            if self._torn:
                raise OSError(f"only {written} of {len(line)} bytes were written")
            return True
        except (OSError, TypeError, ValueError) as error:
            self.losses.add(record)
            self._warn(error)
            return False

    def sync(self) -> None:
        """Write the file to disk, so that it survives a power loss. It takes milliseconds; call it per checkpoint."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.fsync(self._descriptor)

    def report_losses(self) -> None:
        """Log what was lost since the last report."""
        if self.losses.records > self._reported:
            self._reported = self.losses.records
            log.warning("outbox %s: %s could not be written and are lost", self.path, self.losses)

    def close(self) -> None:
        self.sync()
        self.report_losses()
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
        self._descriptor = -1

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "outbox %s: a record was dropped (%s). The job continues, and states at its end what is missing in "
                "MLflow; free the disk to lose nothing else",
                self.path,
                error,
            )


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
        """Number of records that could not be written."""
        return self._lines.losses.records

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

    def report_losses(self) -> None:
        """Log what could not be written since the last report."""
        self._lines.report_losses()

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


def last_record(path: str) -> Record | None:
    """Return the last whole record of a file; None where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).split(b"\n")[:-1]
    except OSError:
        return None
    return next((record for line in reversed(lines) if (record := _parse(line)) is not None), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Whole lines read from an outbox, and the offset after them."""

    records: list[Record]
    end: int


class Source(Protocol):
    """What the shipping thread reads."""

    path: str

    def read(self) -> Chunk | None: ...

    def commit(self, end: int) -> None: ...

    def waiting_bytes(self) -> int:
        """Return how many bytes are not shipped yet."""
        ...


class OutboxReader:
    """The reader: it reads whole lines, CHUNK_BYTES at a time, from the offset that `commit` stored next to the file.

    With `remember=False`, which is meant for a replay, it reads from the start and does not store an offset.
    """

    def __init__(self, path: str, *, remember: bool = True) -> None:
        self.path = path
        self.damaged = 0  # lines that are not JSON: torn by a kill
        self._remember = remember
        self._warned = False
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

    def waiting(self) -> Iterator[Record]:
        """Yield the records that are not shipped yet, without marking them."""
        ahead = OutboxReader(self.path, remember=False)
        ahead.commit(self._offset)
        while (chunk := ahead.read()) is not None:
            yield from chunk.records
            ahead.commit(chunk.end)

    def waiting_bytes(self) -> int:
        """Return how many bytes of the file are not shipped yet."""
        try:
            return max(os.path.getsize(self.path) - self._offset, 0)
        except OSError:
            return 0

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
            if not self._warned:
                self._warned = True
                log.warning("outbox %s: the offset of the shipped lines could not be stored (%s)", self.path, error)


class MemoryOutbox:
    """Records that the disk did not take, for the shipping thread of this process; they end with it."""

    path = "(memory)"

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._shipped = 0

    def append(self, record: Record) -> None:
        if len(self._records) < MAX_IN_MEMORY:
            self._records.append(record)

    def read(self) -> Chunk | None:
        records = self._records[self._shipped :]
        return Chunk(records=records, end=self._shipped + len(records)) if records else None

    def commit(self, end: int) -> None:
        self._shipped = end

    def waiting_bytes(self) -> int:
        return sum(len(json.dumps(record, default=str)) for record in self._records[self._shipped :])


class Denied(Exception):
    """The receiver refuses access: trying again does not help until someone changes the credentials."""


_NOTHING = object()

Send = Callable[[Sequence[Record]], None]
"""Ships records and handles the ones that the receiver refuses. After an exception, shipping is tried again later."""


class Shipper:
    """The one shipping thread of a process: it sends outboxes to their receivers, in the order of `add`.

    Memory is bounded by one chunk. After a failure it waits 0.5 s, then twice as long each time, up to `max_wait_s`.
    A receiver that refuses access is tried MAX_DENIED times; the files keep what is left.

    Args:
        ended: called by the thread as its last act, which may come after `stop` gave up waiting for its current try.
    """

    def __init__(
        self, *, interval_s: float = 1.0, max_wait_s: float = 30.0, ended: Callable[[], None] = lambda: None
    ) -> None:
        self._routes: list[tuple[Source, Send]] = []
        self._later: Iterator[object] = iter(())
        self._interval = interval_s
        self._max_wait = max_wait_s
        self._ended = ended
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._abandoned = threading.Event()  # set when `stop` gave up: the thread ends after its current try
        self._thread: threading.Thread | None = None
        self._failures = 0
        self.last_error: Exception | None = None
        self.denied = False
        """Whether the receiver was left alone since it refuses access."""

    def later(self, steps: Iterator[object]) -> None:
        """Add work that the thread does once, a step at a time, whenever nothing waits in the outboxes.

        If a step fails, this is logged, and the rest is left to another process.
        """
        self._later = steps

    def add(self, reader: Source, send: Send) -> None:
        """Add an outbox; the first one starts the thread."""
        if all(reader.path != known.path for known, _ in self._routes):
            self._routes = [*self._routes, (reader, send)]
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="metric-shipper", daemon=True)
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

    def _run(self) -> None:
        try:
            self._loop()
        finally:
            self._ended()

    def _loop(self) -> None:
        tries = 0  # since `stop`
        while not self._abandoned.is_set():
            stopping = self._stopping.is_set()  # read first, so that this round has all that precedes `stop`
            shipped = self._ship_all()
            self._failures = 0 if shipped else self._failures + 1
            set_to(OUTBOX_BYTES, sum(reader.waiting_bytes() for reader, _ in self._routes))
            set_to(OUTBOX_FAILED_TRIES, self._failures)
            if shipped:
                if self._step_later():
                    continue
                if stopping:
                    return
                self._wake.wait(self._interval)
                self._wake.clear()
                continue
            if isinstance(self.last_error, Denied) and self._failures >= MAX_DENIED:
                self.denied = True
                log.warning("%s. This job sends nothing more", first_line(self.last_error))
                return
            if stopping:
                self._abandoned.wait(min(LAST_WAIT_S, 0.5 * 2.0**tries))
                tries += 1
            else:
                self._stopping.wait(min(self._max_wait, 0.5 * 2.0 ** min(self._failures - 1, 10)))

    def _step_later(self) -> bool:
        """Do a step of the work that was left for later, and return whether there was one."""
        try:
            return next(self._later, _NOTHING) is not _NOTHING
        except Exception as error:  # no exception may end the thread
            self._later = iter(())
            log.warning("what earlier jobs have logged is not shipped: %s", first_line(error))
            return False

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
