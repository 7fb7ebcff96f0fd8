"""Log lines as JSON: what a process prints, logs and warns of becomes one object per line.

    {"time": "2026-01-31T12:00:00.123Z", "level": "info", "job": "train", "run": "quality", "message": "…"}

`unit` and `rank` are there where the process has them. One call of `print` is one object, whatever lines its text has.
Credentials are hidden, and characters outside ASCII are escaped, so that a line is valid whatever the stream's
encoding is and no text can control a terminal. Native code that writes to the descriptors itself is not covered.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import TextIO, cast

from altdiffusion.credentials import redact
from altdiffusion.monitoring.identity import Identity, adopt, identity

VARIABLE = "ALTDIFFUSION_LOG_FORMAT"
"""`json` has the whole output of a job as JSON, also what is printed before its config was read."""
_ERROR = re.compile(r"\A(?:\S+: |python -m \S+: )?error: |\ATraceback |\AException in thread")
_WARNING = re.compile(r"(?i)warning:|\bWARNING\b")


def _level_of(text: str) -> str:
    """Return the level of a text that was printed, which the text itself states."""
    return "error" if _ERROR.search(text) else "warning" if _WARNING.search(text) else "info"


class JsonStream(io.TextIOBase):
    """A stream that writes each printed text as one object. Every thread has a buffer of its own.

    Args:
        raw: what the lines go to.
    """

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw
        self._lock = threading.Lock()
        self._parts = threading.local()

    def write(self, text: str) -> int:
        """Keep the text until it ends a line."""
        whole = getattr(self._parts, "text", "") + text
        self._parts.text = ""
        if whole.endswith("\n"):
            shown = "\n".join(line.rpartition("\r")[2] for line in whole.rstrip("\r\n").split("\n"))
            if shown.strip():
                self.emit(_level_of(shown), shown)
        else:
            self._parts.text = whole
        return len(text)

    def emit(self, level: str, message: str) -> None:
        """Write one object."""
        here = identity()
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields = {"time": now, "level": level, "job": here.job, "run": here.run, "unit": here.unit, "rank": here.rank}
        known = {key: value for key, value in fields.items() if value not in (None, "")}
        line = json.dumps({**known, "message": redact(message)}) + "\n"
        with self._lock:
            self.raw.write(line)
            self.raw.flush()

    def flush(self) -> None:
        self.raw.flush()

    def fileno(self) -> int:
        return self.raw.fileno()

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"


class _Handler(logging.Handler):
    """Writes what libraries log as objects, with the logger's level."""

    def emit(self, record: logging.LogRecord) -> None:
        logger: logging.Logger | None = logging.getLogger(record.name)
        while logger is not None and logger.parent is not None:
            if logger.handlers:  # which have written it
                return
            logger = logger.parent
        level = "error" if record.levelno >= logging.ERROR else record.levelname.lower()
        stream = sys.stderr
        if isinstance(stream, JsonStream):
            stream.emit(level, f"{record.name}: {self.format(record)}")
        elif logging.lastResort is not None:  # a program has put its own stream in place
            logging.lastResort.handle(record)


class JsonLogs:
    """The switch of a process, as a context manager: what `start` changed is undone at the end of the block."""

    def __init__(self) -> None:
        self._handler = _Handler()
        self._before: tuple[TextIO, TextIO] | None = None

    def start(self) -> None:
        """Write JSON from now on; nothing happens where this was done."""
        if self.started:
            return
        self._before = (sys.stdout, sys.stderr)
        sys.stdout, sys.stderr = (cast(TextIO, JsonStream(stream)) for stream in self._before)
        logging.getLogger().addHandler(self._handler)
        self._redirect({id(self._before[0]): sys.stdout, id(self._before[1]): sys.stderr})

    @property
    def started(self) -> bool:
        """Whether lines are JSON now."""
        return isinstance(sys.stderr, JsonStream)

    def __enter__(self) -> JsonLogs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is None or isinstance(error, Exception):  # whose traceback is still to be printed
            return
        self._redirect({id(sys.stdout): self._before[0], id(sys.stderr): self._before[1]})
        logging.getLogger().removeHandler(self._handler)
        (sys.stdout, sys.stderr), self._before = self._before, None

    def _redirect(self, streams: dict[int, TextIO]) -> None:
        """Have the handlers that libraries made earlier write to other streams."""
        loggers = [logging.getLogger(), *logging.root.manager.loggerDict.values()]
        for logger in loggers:
            for handler in getattr(logger, "handlers", ()):
                if isinstance(handler, logging.StreamHandler) and id(vars(handler).get("stream")) in streams:
                    handler.setStream(streams[id(handler.stream)])


def is_asked_for() -> bool:
    """Return whether the environment asks for JSON.

    Raises:
        ValueError: the variable has another value than text and json.
    """
    value = os.environ.get(VARIABLE, "text")
    if value not in ("text", "json"):
        raise ValueError(f"{value!r} is neither text nor json")
    return value == "json"


def begin_worker(of: Identity) -> None:
    """Have a worker's process take over what its driver works for, and how that writes its log lines."""
    adopt(of)
    if of.json:
        JsonLogs().start()
