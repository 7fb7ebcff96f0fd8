"""Rows of a machine's datasets by language, on its own disk: a row group is read from the lake once, not per language.

With a language temperature, each language goes through a dataset at its own pace, and a row group holds a few rows of
each. So it would be read and verified again for every language. The first reader of a row group therefore writes all
of its rows here, one language after the other, and each language's rows are from then on one read:

    <cache>/chunks/<dataset>/<SHA-256 of the shard>-<row group>    header (JSON, padded), then the rows of each language

Every part has a CRC-32; a file that is damaged or missing is made again from the lake, where every page is verified.
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
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from isal import isal_zlib

from altdiffusion.storage.user_cache import user_cache
from altdiffusion.training.data.layout import Rows

U8 = npt.NDArray[np.uint8]

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

    def rows(self, key: str, language: str, read: Callable[[], tuple[Rows, npt.NDArray[np.object_]]]) -> Rows:
        """Return the rows of one language in a row group, tensors [K, ...] in the order of the dataset.

        Args:
            key: names the row group.
            read: returns the whole row group, tensors [R, ...], and the language of each row.
        """
        path = os.path.join(self._folder, key)
        found = _read(path, language) if self._is_open() else None
        if found is not None:
            return found
        with self._making(key):
            found = _read(path, language)
            if found is not None:
                return found
            whole, languages = read()
            parts = dict(_by_language(whole, languages))
            self._write(path, parts)
        empty = {name: tensor[:0] for name, tensor in whole.items()}
        return parts.get(language, empty)

    def close(self) -> None:
        """Remove the folder if no other process uses it; a later call of `rows` opens it again."""
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
        with maker:
            yield
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


def _by_language(whole: Rows, languages: npt.NDArray[np.object_]) -> Iterator[tuple[str, Rows]]:
    """Yield the rows of each language of a row group."""
    names, codes = np.unique(languages, return_inverse=True)
    for code, name in enumerate(names.tolist()):
        index = torch.from_numpy(np.flatnonzero(codes == code))
        yield name, {key: torch.index_select(tensor, 0, index) for key, tensor in whole.items()}


def _encoded(parts: dict[str, Rows]) -> tuple[bytes, list[U8]]:
    """Return the header of a file, and the bytes after it in pieces."""
    at, pieces, places = _HEADER_BYTES, list[U8](), {}
    tensors: list[list[Any]] = []
    for language, rows in parts.items():
        start, checksum = at, 0
        tensors = [
            [name, str(value.dtype).removeprefix("torch."), list(value.shape[1:])] for name, value in rows.items()
        ]
        for tensor in rows.values():
            piece = tensor.contiguous().view(-1).view(torch.uint8).numpy()
            pad = np.zeros(-piece.nbytes % _ALIGNMENT, np.uint8)
            for part in (piece, pad):
                checksum = isal_zlib.crc32(part.data, checksum)
                pieces.append(part)
            at += piece.nbytes + pad.nbytes
        places[language] = [start, at - start, len(next(iter(rows.values()))), checksum]
    text = json.dumps({"tensors": tensors, "places": places}, separators=(",", ":")).encode()
    return b"%08x%08x" % (len(text), isal_zlib.crc32(text)) + text, pieces


def _read(path: str, language: str) -> Rows | None:
    """Return the rows of a language out of a file; None where it is missing, cut off or damaged."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        head = os.pread(file, _HEADER_BYTES, 0)
        size, checksum = int(head[:8], 16), int(head[8:16], 16)
        text = head[16 : 16 + size]
        if isal_zlib.crc32(text) != checksum:
            return None
        header = json.loads(text)
        start, length, count, checksum = header["places"].get(language, (0, 0, 0, 0))
        body = np.empty(length, np.uint8)
        if length and (os.preadv(file, [body.data], start) != length or isal_zlib.crc32(body.data) != checksum):
            return None
    except ValueError:
        return None
    finally:
        os.close(file)
    found, at = {}, 0
    for name, dtype, shape in header["tensors"]:
        kind = getattr(torch, dtype)
        items = count * int(np.prod(shape, dtype=np.int64))
        end = at + items * kind.itemsize
        found[name] = torch.from_numpy(body[at:end]).view(kind).view(count, *shape)
        at = end + (-(end - at) % _ALIGNMENT)
    return found


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
