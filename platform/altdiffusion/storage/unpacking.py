"""Text that comes packed with gzip: a few bytes of it can be a line that fills the memory, so lines have a limit."""

from __future__ import annotations

import gzip
import io
from typing import Any, cast

from altdiffusion.errors import AltDiffusionError

MOST_LINE = 16 << 20
"""Bytes of a line, as for lists of links."""


class _Bounded(io.RawIOBase):
    """What a gzip file holds.

    Args:
        what: names the file in errors.
        most: bytes that it may hold in all; None where it is read line by line.
    """

    def __init__(self, packed: Any, what: str, most: int | None) -> None:
        self._file = gzip.GzipFile(fileobj=packed)
        self._what, self._most = what, most
        self._line = self._all = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        end = data.rfind(b"\n")
        self._line = len(data) - end - 1 if end >= 0 else self._line + len(data)
        self._all += len(data)
        if self._most is None and self._line > MOST_LINE:
            raise AltDiffusionError(self._what, "has a line of over 16 MiB when it is unpacked", "write shorter lines")
        if self._most is not None and self._all > self._most:
            raise AltDiffusionError(
                self._what,
                f"holds more than {self._most >> 20} MiB when it is unpacked",
                "write it as lines (.jsonl.gz)",
            )
        buffer[: len(data)] = data
        return len(data)


def unpacked(packed: Any, what: str, most: int | None = None) -> io.BufferedReader:
    """Return what a gzip file holds, to be read line by line, or up to `most` bytes as a whole.

    Raises:
        AltDiffusionError: by reading: a line is longer than MOST_LINE, or the whole than `most`.
        EOFError, gzip.BadGzipFile, zlib.error: by reading: it is damaged.
    """
    return io.BufferedReader(cast("io.RawIOBase", _Bounded(packed, what, most)))
