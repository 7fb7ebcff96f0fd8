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
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from isal import isal_zlib
from torch import Tensor

from altdiffusion.storage.user_cache import user_cache
from altdiffusion.training.data.layout import Rows, copy_rows

U8 = npt.NDArray[np.uint8]

_threads = threading.local()

log = logging.getLogger(__name__)

_HEADER_BYTES = 4096
"""Room for the header; a row group whose header is larger (hundreds of languages) is not kept."""
_ALIGNMENT = 64
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
        self._root, self._folder = user_cache("chunks"), user_cache("chunks", name)
        self._limit_bytes = limit_bytes
        self._guard, self._makers = threading.Lock(), dict[str, threading.Lock]()
        self._lock: int | None = None
        self._failed = False
        self._room = 0

    def read(
        self,
        key: str,
        language: str,
        first: int,
        into: Rows,
        whole: Callable[[], tuple[Rows, npt.NDArray[np.object_]]],
    ) -> None:
        """Write rows of one language in a row group into tensors [K, ...], in the order of the dataset.

        Args:
            key: names the row group.
            first: the first of these rows among the language's rows in the row group.
            whole: returns the whole row group, tensors [R, ...], and the language of each row.

        Raises:
            ValueError: the row group has fewer rows of the language.
            Mixed: its rows have another shape.
        """
        path = os.path.join(self._folder, key)
        if self._is_open() and _read(path, language, first, into):
            return
        with self._making(key):
            if self._is_open() and _read(path, language, first, into):
                return
            tensors, languages = whole()
            parts = _by_language(tensors, languages)
            self._write(path, parts)
        part = parts.get(language) or {name: tensor[:0] for name, tensor in tensors.items()}
        asked = first + len(next(iter(into.values())))
        if any(len(tensor) < asked for tensor in part.values()):
            raise ValueError(f"it holds another number of rows in {language}")
        copy_rows({name: tensor[first:asked] for name, tensor in part.items()}, into)

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

    def _write(self, path: str, parts: dict[str, Rows]) -> None:
        """Write a row group's file, whole or not at all."""
        header, pieces = _encoded(parts)
        size = _HEADER_BYTES + sum(piece.nbytes for piece in pieces)
        if len(header) > _HEADER_BYTES or size > self._room:
            return
        partial = f"{path}.{os.getpid()}"
        try:
            with open(partial, "wb", buffering=0) as file:
                for piece in (np.frombuffer(header.ljust(_HEADER_BYTES, b"\0"), np.uint8), *pieces):
                    written = 0
                    while written < piece.nbytes:
                        written += file.write(piece[written:].data) or 0
            os.replace(partial, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            self._room = 0
            log.warning("%s: %s; %s", self._folder, error, _SLOW)
            return
        with self._guard:
            self._room -= size


def _by_language(whole: Rows, languages: npt.NDArray[np.object_]) -> dict[str, Rows]:
    """Return the rows of each language of a row group, in memory that this thread's next call overwrites."""
    names, codes = np.unique(languages, return_inverse=True)
    order = torch.from_numpy(np.argsort(codes, kind="stable"))
    ends = np.cumsum(np.bincount(codes)).tolist()
    kept: Rows = _threads.__dict__.setdefault("kept", {})
    for key, tensor in whole.items():
        own = kept.get(key)
        if own is None or (own.dtype, own.shape[1:]) != (tensor.dtype, tensor.shape[1:]) or len(own) < len(tensor):
            kept[key] = torch.empty_like(tensor)
        torch.index_select(tensor, 0, order, out=kept[key][: len(tensor)])
    return {
        name: {key: kept[key][start:end] for key in whole}
        for name, start, end in zip(names.tolist(), [0, *ends], ends, strict=False)
    }


def _encoded(parts: dict[str, Rows]) -> tuple[bytes, list[U8]]:
    """Return the header of a file, and the bytes after it in pieces: for each language a CRC-32 per row, then the rows
    of each tensor."""
    at, pieces, places = _HEADER_BYTES, list[U8](), {}
    tensors: list[list[Any]] = []
    for language, rows in parts.items():
        tensors = [[name, str(value.dtype), list(value.shape[1:])] for name, value in rows.items()]
        bodies = [_bytes_of(value) for value in rows.values()]
        checksums = _checksums(bodies)
        places[language] = [at, len(checksums)]
        for piece in (checksums.view(np.uint8), *(body.reshape(-1) for body in bodies)):
            padded = -piece.nbytes % _ALIGNMENT
            pieces += [piece, np.zeros(padded, np.uint8)]
            at += piece.nbytes + padded
    text = json.dumps({"tensors": tensors, "places": places}, separators=(",", ":")).encode()
    return b"%08x%08x" % (len(text), isal_zlib.crc32(text)) + text, pieces


def _bytes_of(tensor: Tensor) -> U8:
    """Return the bytes of rows, uint8 [R, L], without a copy where the rows follow each other in memory."""
    found: U8 = tensor.contiguous().view(len(tensor), -1).view(torch.uint8).numpy()
    return found


def _checksums(bodies: Sequence[U8]) -> npt.NDArray[np.uint32]:
    """Return a CRC-32 per row, of its bytes in all tensors."""
    found = [0] * len(bodies[0])
    for body in bodies:
        found = [isal_zlib.crc32(row.data, before) for row, before in zip(body, found, strict=True)]
    return np.array(found, np.uint32)


def _read(path: str, language: str, first: int, into: Rows) -> bool:
    """Fill tensors [K, ...] with rows of a language out of a file; return false where it is missing, damaged, or holds
    no such rows."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        head = os.pread(file, _HEADER_BYTES, 0)
        size, checksum = int(head[:8], 16), int(head[8:16], 16)
        text = head[16 : 16 + size]
        if isal_zlib.crc32(text) != checksum:
            return False
        header = json.loads(text)
        at, count = header["places"].get(language, (0, 0))
        shapes = [[name, str(value.dtype), list(value.shape[1:])] for name, value in into.items()]
        rows = len(next(iter(into.values())))
        if header["tensors"] != shapes or first + rows > count:
            return False
        bodies = [_bytes_of(tensor) for tensor in into.values()]
        checksums = np.empty(rows, np.uint32)
        for body, items in (
            (checksums.view(np.uint8).reshape(rows, 4), 4),
            *((body, body.shape[1]) for body in bodies),
        ):
            if os.preadv(file, [body.reshape(-1).data], at + first * items) != body.nbytes:
                return False
            at += count * items + (-count * items % _ALIGNMENT)
        return bool((_checksums(bodies) == checksums).all())
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
