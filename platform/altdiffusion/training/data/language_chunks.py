"""Rows of a machine's datasets by language, on its own disk: a row group is read from the lake once, not per language.

With a language temperature, each language goes through a dataset at its own pace, and a row group holds a few rows of
each. So it would be read and verified again for every language. The first reader of a row group therefore writes all
of its rows here, one language after the other, and each language's rows are from then on one read:

    <cache>/chunks/<dataset>/<SHA-256 of the shard>-<row group>    header (JSON, padded), then the rows of each language

Every row has a CRC-32; a file that is damaged or missing is made again from the lake, where every page is verified.
The workers of a machine share a dataset's folder. It is removed when the last of them closes it; what a killed run has
left is removed, or used, by the next one: rows that were to be forgotten do not outlive the runs that read them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from isal import isal_zlib
from torch import Tensor

from altdiffusion.storage.user_cache import user_cache
from altdiffusion.training.data.layout import Rows, check_shape
from altdiffusion.training.order.permutation import I64

U8 = npt.NDArray[np.uint8]

log = logging.getLogger(__name__)

_FORMAT = 2
_HEADER_BYTES = 4096
"""Room for the header; a row group whose header is larger (hundreds of languages) is not kept."""
_ALIGNMENT = 4096
_PIECES = min(1024, os.sysconf("SC_IOV_MAX"))
"""Most pieces of memory that are written with one call."""
_WRITE_BYTES = 1 << 20
"""Bytes after which a call is made: calls of 4 MiB and more took three times the CPU time, in large pages."""
_LOCK = ".lock"
_SLOW = "row groups are read from the lake again for each language (workers.language_disk_gb: 0 does so silently)"


class LanguageChunks:
    """The rows of one dataset by language, on this machine; for use by several threads and processes.

    Args:
        name: names the dataset version, as its digest does.
        limit_bytes: what the folders of all datasets may take; None is half of what is free. Beyond it, and on a disk
            without room, row groups are read from the lake as if there were no such folder.
    """

    def __init__(self, name: str, limit_bytes: int | None) -> None:
        self._root, self._folder = user_cache("chunks"), user_cache("chunks", f"{name}-{_FORMAT}")
        self._limit_bytes = limit_bytes
        self._guard, self._makers = threading.Lock(), dict[str, threading.Lock]()
        self._lock: int | None = None
        self._failed = False
        self._room = 0

    def read(
        self,
        key: str,
        group_rows: int,
        language: str,
        first: int,
        into: Rows,
        whole: Callable[[], tuple[Rows, npt.NDArray[np.object_]]],
    ) -> None:
        """Write rows of one language in a row group into tensors [K, ...], in the order of the dataset.

        Args:
            key: names the row group.
            group_rows: its number of rows.
            first: the first of these rows among the language's rows in the row group.
            into: contiguous tensors.
            whole: returns the whole row group, tensors [R, ...], and the language of each row.

        Raises:
            ValueError: the row group has fewer rows of the language.
            Mixed: its rows have another shape.
        """
        path = os.path.join(self._folder, key)
        if self._is_open() and _read(path, group_rows, language, first, into):
            return
        with self._making(key):
            if self._is_open() and _read(path, group_rows, language, first, into):
                return
            tensors, languages = whole()
            order, places = _by_language(languages)
            self._write(path, tensors, order, places)
        start, stop = places.get(language, (0, 0))
        count = len(next(iter(into.values())))
        if start + first + count > stop:
            raise ValueError(f"it holds another number of rows in {language}")
        index = torch.from_numpy(order[start + first : start + first + count])
        for name, tensor in tensors.items():
            check_shape(name, tensor, into[name])
            torch.index_select(tensor, 0, index, out=into[name])

    def close(self) -> None:
        """Remove the folder if no other process uses it; a later call of `read` opens it again."""
        with self._guard:
            if self._lock is not None:
                _remove_unused(self._folder, self._lock)
                self._lock = None

    def _is_open(self) -> bool:
        """Return whether there is a folder; the first call makes it, and removes the folders that no process holds."""
        with self._guard:
            if self._lock is None and not self._failed:
                try:
                    self._lock = _hold(self._folder)
                    self._room = self._make_room()
                except OSError as error:
                    self._failed = True
                    log.warning("%s: %s; %s", self._folder, error, _SLOW)
            return self._lock is not None

    def _make_room(self) -> int:
        """Remove what killed runs have left, and return the bytes that this process may write."""
        for entry in list(os.scandir(self._root)):
            if entry.path != self._folder and entry.is_dir():
                with contextlib.suppress(OSError):  # another process removes it
                    _remove_unused(entry.path, os.open(os.path.join(entry.path, _LOCK), os.O_RDWR))
        taken, free = _taken(self._root), shutil.disk_usage(self._root).free
        return ((free + taken) // 2 if self._limit_bytes is None else self._limit_bytes) - taken

    @contextlib.contextmanager
    def _making(self, key: str) -> Iterator[None]:
        """Let one thread make a file; the others of this process wait for it."""
        with self._guard:
            maker = self._makers.setdefault(key, threading.Lock())
        try:
            with maker:
                yield
        finally:
            with self._guard:
                self._makers.pop(key, None)

    def _write(self, path: str, tensors: Rows, order: I64, places: dict[str, tuple[int, int]]) -> None:
        """Write a row group's file, whole or not at all."""
        header = _header(tensors, places)
        size = sum(_places_of([tensor.nbytes for tensor in tensors.values()], len(order))[-1])
        if len(header) > _HEADER_BYTES or size > self._room:
            return
        partial = f"{path}.{os.getpid()}"
        try:
            file = os.open(partial, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
            try:
                _write_all(file, _pieces(header, tensors, order))
            finally:
                os.close(file)
            os.replace(partial, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            self._room = 0
            log.warning("%s: %s; %s", self._folder, error, _SLOW)
            return
        with self._guard:
            self._room -= size


def row_bytes(rows: Rows) -> int:
    """Return the bytes of one row in all tensors [R, ...]."""
    return sum(math.prod(tensor.shape[1:]) * tensor.element_size() for tensor in rows.values())


def _by_language(languages: npt.NDArray[np.object_]) -> tuple[I64, dict[str, tuple[int, int]]]:
    """Return the rows of a row group, one language after the other, and where each language's rows are among them."""
    names, codes = np.unique(languages, return_inverse=True)
    ends = np.cumsum(np.bincount(codes)).tolist()
    places = dict(zip(names.tolist(), zip([0, *ends], ends, strict=False), strict=True))
    return np.argsort(codes, kind="stable"), places


def _header(tensors: Rows, places: dict[str, tuple[int, int]]) -> bytes:
    """Return the header of a file: its length and CRC-32 in hexadecimal digits, then JSON."""
    text = json.dumps({"tensors": _shapes(tensors), "places": places}, separators=(",", ":")).encode()
    return b"%08x%08x" % (len(text), isal_zlib.crc32(text)) + text


def _shapes(tensors: Rows) -> list[list[Any]]:
    return [[name, str(value.dtype), list(value.shape[1:])] for name, value in tensors.items()]


def _places_of(sizes: Sequence[int], rows: int) -> list[tuple[int, int]]:
    """Return (offset, bytes) of the tensors' rows in a file, given the bytes of each tensor."""
    at, found = _HEADER_BYTES + 4 * (rows + 1) * len(sizes), []
    for size in sizes:
        at += -at % _ALIGNMENT
        found.append((at, size))
        at += size
    return found


def _pieces(header: bytes, tensors: Rows, order: I64) -> Iterator[memoryview]:
    """Yield the bytes of a file, without a copy: rows are written from where they are."""
    bodies = [_bytes_of(tensor) for tensor in tensors.values()]
    rows: list[list[memoryview]] = [[body[row].data for row in order.tolist()] for body in bodies]
    checksums = [list(accumulate(views, _continued, initial=0)) for views in rows]
    at = _HEADER_BYTES
    yield memoryview(header.ljust(at, b"\0"))
    for table in checksums:
        yield memoryview(np.array(table, np.uint32).tobytes())
        at += 4 * len(table)
    for body, views in zip(bodies, rows, strict=True):
        yield memoryview(bytes(-at % _ALIGNMENT))
        yield from views
        at += -at % _ALIGNMENT + body.nbytes


def _write_all(file: int, pieces: Iterator[memoryview]) -> None:
    """Write pieces of bytes one after the other, many with each call."""
    left, size = deque[memoryview](), 0
    for piece in chain(pieces, [None]):
        if piece is not None:
            left.append(piece)
            size += piece.nbytes
        while left and (piece is None or size >= _WRITE_BYTES or len(left) == _PIECES):
            written = os.writev(file, left)
            size -= written
            while left and written >= left[0].nbytes:
                written -= left.popleft().nbytes
            if written:
                left[0] = left[0][written:]


def _continued(before: int, row: memoryview) -> int:
    """Return the CRC-32 of all rows up to this one."""
    return isal_zlib.crc32(row, before)


def _bytes_of(tensor: Tensor) -> U8:
    """Return the bytes of rows, uint8 [R, L], without a copy where the rows follow each other in memory."""
    found: U8 = tensor.contiguous().view(len(tensor), -1).view(torch.uint8).numpy()
    return found


def _read(path: str, group_rows: int, language: str, first: int, into: Rows) -> bool:
    """Fill tensors [K, ...] with rows of a language out of a file; return false where it is missing, damaged, or holds
    no such rows."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        head = os.pread(file, _HEADER_BYTES + 4 * (group_rows + 1) * len(into), 0)
        size, checksum = int(head[:8], 16), int(head[8:16], 16)
        text = head[16 : 16 + size]
        if isal_zlib.crc32(text) != checksum:
            return False
        header = json.loads(text)
        start, stop = header["places"].get(language, (0, 0))
        rows = len(next(iter(into.values())))
        if header["tensors"] != _shapes(into) or start + first + rows > stop:
            return False
        start, stop = start + first, start + first + rows
        checksums = np.frombuffer(head, np.uint32, offset=_HEADER_BYTES).reshape(len(into), group_rows + 1)
        bodies = [_bytes_of(tensor) for tensor in into.values()]
        places = _places_of([group_rows * body.shape[1] for body in bodies], group_rows)
        for body, (at, _), known in zip(bodies, places, checksums, strict=True):
            view = body.reshape(-1).data
            if os.preadv(file, [view], at + start * body.shape[1]) != body.nbytes:
                return False
            if isal_zlib.crc32(view, int(known[start])) != int(known[stop]):
                return False
        return True
    except (OSError, ValueError):  # a bad block of this disk does not damage the dataset
        return False
    finally:
        os.close(file)


def _hold(folder: str) -> int:
    """Make a folder and return a file that holds it: no other process removes it until the file is closed.

    Raises:
        OSError: the folder cannot be made or held.
    """
    path = os.path.join(folder, _LOCK)
    while True:
        os.makedirs(folder, exist_ok=True)
        lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                return lock
        except FileNotFoundError:  # another process removed the folder before it was held
            pass
        except OSError:
            os.close(lock)
            raise
        os.close(lock)


def _remove_unused(folder: str, lock: int) -> None:
    """Remove a folder unless another process holds it; close this one's hold of it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)


def _taken(root: str) -> int:
    """Return the bytes of all files below a folder."""
    found = 0
    for folder, _, names in os.walk(root):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # another process removes its folder
                found += os.stat(os.path.join(folder, name)).st_size
    return found
