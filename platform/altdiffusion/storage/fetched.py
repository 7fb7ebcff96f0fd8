"""A file of an object store of which ranges are fetched ahead: few large requests, at the same time.

A Parquet reader asks for a footer and for column chunks in small reads, each of which would be a request and a wait.
Here the end of the file is fetched at once, and what a row group needs in pieces of `PIECE_BYTES` at the same time: one
connection to an object store carries 50 to 100 MB/s.
"""

from __future__ import annotations

import bisect
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from altdiffusion.storage import files

PIECE_BYTES = 8 << 20
_TAIL_BYTES = 64 << 10
"""What Arrow reads first of a file; a longer footer is one more request."""
_GAP_BYTES = 1 << 20
"""Ranges with less between them are fetched as one: a request costs as much as that many bytes."""


class FetchedFile(io.RawIOBase):
    """A remote file of a known size, for use by one thread; reads outside what was fetched are requests.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another size.
    """

    def __init__(self, uri: str, size_bytes: int) -> None:
        self._uri, self._size, self._at = uri, size_bytes, 0
        start = max(0, size_bytes - _TAIL_BYTES)
        try:
            tail = files.read_ranges(uri, [(start, size_bytes + 1 - start)])[0]  # one more, which must not be there
        except FileNotFoundError:
            raise
        except Exception:  # a range beyond the end is refused in as many ways as there are stores
            self._check_size()
            raise
        if len(tail) != size_bytes - start:
            self._check_size()
        self._tail = (start, tail)
        self._pieces = [self._tail]

    def _check_size(self) -> None:
        found = files.size_bytes(self._uri)
        if found != self._size:
            raise ValueError(f"it has {found} bytes instead of {self._size}")

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Fetch ranges, each by offset and size, in the place of what was fetched before."""
        wanted = [
            (at, min(PIECE_BYTES, stop - at))
            for start, stop in _joined(ranges)
            for at in range(start, stop, PIECE_BYTES)
        ]
        found = files.read_ranges(self._uri, wanted) if wanted else []
        self._pieces = sorted([*((at, data) for (at, _), data in zip(wanted, found, strict=True)), self._tail])

    def forget(self) -> None:
        """Free what was fetched, but for the end of the file."""
        self._pieces = [self._tail]

    def bytes_at(self, start: int, count: int) -> npt.NDArray[np.uint8]:
        """Return bytes of the file, read-only.

        Raises:
            ValueError: it ends before.
        """
        found, end = [], start + count
        while start < end:
            data = self._piece(start, end)
            if not len(data):
                raise ValueError(f"it ends {end - start} bytes early")
            found.append(data)
            start += len(data)
        return np.frombuffer(found[0] if len(found) == 1 else b"".join(found), np.uint8)

    def _piece(self, start: int, end: int) -> memoryview:
        """Return the bytes from `start` that are at hand, up to `end`; where none are, fetch them."""
        number = bisect.bisect_right(self._pieces, start, key=lambda piece: piece[0]) - 1
        if number >= 0:
            at, data = self._pieces[number]
            if start < at + len(data):
                return memoryview(data)[start - at : end - at]
        return memoryview(files.read_ranges(self._uri, [(start, end - start)])[0])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._at))
        if count:
            view[:count] = self.bytes_at(self._at, count).data
        self._at += count
        return count


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges by start and stop, ascending, with those near each other as one."""
    found: list[tuple[int, int]] = []
    for start, size in sorted(ranges):
        if found and start - found[-1][1] < _GAP_BYTES:
            found[-1] = (found[-1][0], max(found[-1][1], start + size))
        else:
            found.append((start, start + size))
    return found
