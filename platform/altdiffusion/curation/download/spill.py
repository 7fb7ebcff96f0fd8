"""The spill file: images of one unit on their way to shards, written as they come, read in input order.

Memory holds about 80 bytes per row and the links that redirects led to, whatever the images' size. The images of one
shard are read back at a time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from altdiffusion.storage import files

_ROW = np.dtype(
    [
        *(("at", np.int64), ("bytes", np.int32), ("reason", np.int16), ("verdict", np.int8), ("profiled", np.int8)),
        *((name, np.int32) for name in ("width", "height", "original_width", "original_height")),
        *(("phash", np.int64), ("sha256", np.uint8, 32)),
    ]
)
_STORED, _OPEN = -1, -2
Rows = npt.NDArray[np.int64]


class SpillFile:
    """A file of `rows` rows. Any thread stores or refuses each row, once; then they are read in order.

    Args:
        path: a file to make; the caller removes it.

    Raises:
        AltDiffusionError: by every method that writes, and by `close`: the file could not be written (no space left).
    """

    def __init__(self, path: str, rows: int) -> None:
        self._path = path
        self._file = open(path, "xb", buffering=1 << 20)  # noqa: SIM115  closed by `close`
        self._reader = os.open(path, os.O_RDONLY)
        self._rows = np.zeros(rows, _ROW)
        self._rows["reason"] = _OPEN
        self._reasons: dict[str, int] = {}
        self._finals: dict[int, str] = {}
        self._end = 0
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the file."""
        try:
            with files.naming(self._path, "writing"):
                self._file.close()
        finally:
            os.close(self._reader)

    def refuse(self, row: int, reason: str, detail: str) -> None:
        """Note why the row has no image."""
        with self._lock:
            number = self._reasons.setdefault(reason, len(self._reasons))
            self._append(row, detail.encode("utf-8", "replace"))
            self._rows["reason"][row] = number

    def store(
        self,
        row: int,
        image: bytes,
        *,
        sides: tuple[int, int, int, int],
        sha256: bytes,
        phash: int,
        verdict: int,
        profiled: int,
        final_url: str = "",
    ) -> None:
        """Write a row's image and note what is known of it.

        Args:
            sides: width and height as stored, then as downloaded; pixels.
            sha256: 32 bytes.
            verdict: a number of the caller's, as is `profiled`.
            final_url: the link that redirects led to; empty where there were none.
        """
        entry = self._rows[row]
        entry["width"], entry["height"], entry["original_width"], entry["original_height"] = sides
        entry["sha256"] = np.frombuffer(sha256, np.uint8)
        entry["phash"], entry["verdict"], entry["profiled"] = phash, verdict, profiled
        with self._lock:
            if final_url:
                self._finals[row] = final_url
            self._append(row, image)
            self._rows["reason"][row] = _STORED

    def _append(self, row: int, data: bytes) -> None:
        self._rows["at"][row], self._rows["bytes"][row] = self._end, len(data)
        with files.naming(self._path, "writing"):
            self._file.write(data)
        self._end += len(data)

    # Reading, once all rows are settled:

    def finish(self) -> None:
        """Flush what was written; to be called before the first read.

        Raises:
            RuntimeError: rows are neither stored nor refused.
        """
        with files.naming(self._path, "writing"):
            self._file.flush()
        lost = int((self._rows["reason"] == _OPEN).sum())
        if lost:
            raise RuntimeError(f"{lost} of {len(self._rows)} rows were lost")

    def stored(self, limit_bytes: int) -> Iterator[Rows]:
        """Yield the rows with an image, in order, as many at a time as fit into `limit_bytes`, at least one."""
        rows = np.flatnonzero(self._rows["reason"] == _STORED)
        ends = np.cumsum(self._rows["bytes"][rows], dtype=np.int64)
        start = 0
        while start < len(rows):
            before = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + limit_bytes, side="right")))
            yield rows[start:stop]
            start = stop

    def column(self, name: str, rows: Rows) -> npt.NDArray[Any]:
        """Return verdict, profiled, width, height, original_width, original_height, phash or sha256 [rows, 32]."""
        values: npt.NDArray[Any] = self._rows[name][rows]
        return values

    def final_urls(self, rows: Rows) -> pa.Array:
        """Return the links that redirects led to: string, null where no redirect was followed."""
        return pa.array([self._finals.get(row) for row in rows.tolist()], pa.string())

    def images(self, rows: Rows) -> pa.Array:
        """Return the images of rows: binary."""
        return self._read(rows, pa.binary())

    def refused(self) -> tuple[Rows, pa.Array, pa.Array]:
        """Return the rows without an image, in order; their reasons; their details, null where there is none."""
        rows = np.flatnonzero(self._rows["reason"] >= 0)
        reasons = pa.array(list(self._reasons), pa.string()).take(pa.array(self._rows["reason"][rows]))
        details = self._read(rows, pa.string())
        empty = pa.array(self._rows["bytes"][rows] == 0)
        return rows, reasons, pa.compute.if_else(empty, None, details)

    def reasons(self) -> dict[str, int]:
        """Return how many rows were refused for each reason."""
        counts = np.bincount(self._rows["reason"][self._rows["reason"] >= 0], minlength=len(self._reasons))
        return {reason: int(counts[number]) for reason, number in self._reasons.items()}

    def _read(self, rows: Rows, dtype: pa.DataType) -> pa.Array:
        lengths = self._rows["bytes"][rows]
        offsets = np.zeros(len(rows) + 1, np.int32)
        np.cumsum(lengths, out=offsets[1:])
        buffer = pa.allocate_buffer(int(offsets[-1]))
        view = memoryview(buffer).cast("B")
        for at, start, stop in zip(self._rows["at"][rows], offsets[:-1], offsets[1:], strict=True):
            if os.preadv(self._reader, [view[start:stop]], int(at)) != stop - start:
                raise OSError("the spill file of images has been cut short")
        return pa.Array.from_buffers(dtype, len(rows), [None, pa.py_buffer(offsets), buffer])
