"""The files of a source, in the order of their names, and what identifies each.

A file's identity is the SHA-256 of its bytes. Of a file above 64 MiB that is not on this machine, it is that of its
size with its first and last mebibyte, because reading it twice would cost as much as the import.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from altdiffusion.curation.hub_data import check_pinned
from altdiffusion.curation.own.sample import is_image_name, nfc
from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.storage import files

_EDGE = 1 << 20
_LARGE = 64 << 20
_THREADS = 8
_AGAIN = "run the job again, which reads it as it is now"


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file of a source."""

    name: str
    """Path within the source, as the file system spells it."""
    uri: str
    size: int
    leads_out: bool = False
    """Whether it is a symbolic link to something outside of the source; then it is never opened."""

    @functools.cached_property
    def key(self) -> str:
        """The name as it is compared and stored."""
        return nfc(self.name)


@dataclass(kw_only=True)
class Listing:
    """What a source holds."""

    uri: str
    files: list[SourceFile] = field(default_factory=list)
    linked_folders: int = 0
    """Symbolic links to folders, which are not followed."""
    broken_links: int = 0
    """Symbolic links that lead to nothing, or to themselves."""
    is_file: bool = False


def list_source(uri: str) -> Listing:
    """List a folder with all that is in it, a file, or the files that a glob names; hidden ones are left out.

    Raises:
        AltDiffusionError: it is not there, cannot be read, or a name of the hub is not pinned to a commit.
    """
    check_pinned(uri)
    if not uri.strip():
        raise AltDiffusionError("source ''", "is an empty address", "give a folder, file or glob")
    fs, path = files.filesystem(uri)
    fs.invalidate_cache()
    path = path.rstrip("/") or "/"
    try:
        if fs.isdir(path):
            listing = Listing(uri=uri)
            if files.is_local(uri):
                _walk(path, listing)
            else:
                listing.files = [_remote(fs, path, entry) for entry in fs.find(path, detail=True).values()]
        elif fs.isfile(path):
            listing = Listing(uri=uri, files=[_one(fs, path)], is_file=True)
        else:
            listing = Listing(uri=uri, files=[_one(fs, str(found)) for found in fs.glob(path) if fs.isfile(found)])
    except AltDiffusionError:
        raise
    except Exception as error:  # of an object store's own library, which has no common base class
        if not files.is_of_storage(error) and not isinstance(error, ValueError):
            raise
        raise AltDiffusionError(
            f"source {uri}", f"cannot be read ({first_line(error)})", "check the address and its permissions"
        ) from error
    if not listing.files and not fs.exists(path):
        raise AltDiffusionError(f"source {uri}", "is not there", "give an existing folder, file or glob")
    listing.files = sorted(
        (one for one in listing.files if not _is_hidden(one.name)), key=lambda one: (one.key, one.name)
    )
    return listing


def _is_hidden(name: str) -> bool:
    parts = name.split("/")
    last = parts[-1]
    if any(part.startswith((".", "__MACOSX")) for part in parts[:-1]) or last.startswith("."):
        return True
    # Spark's notes (_SUCCESS, _committed_1), but not a camera's _DSC0001.JPG and its _DSC0001.txt
    return last.startswith("_") and not is_image_name(last) and not last.lower().endswith((".txt", ".caption", ".json"))


def _one(fs: Any, path: str) -> SourceFile:
    return SourceFile(name=path.rsplit("/", 1)[-1], uri=fs.unstrip_protocol(path), size=int(fs.size(path)))


def _remote(fs: Any, folder: str, entry: dict[str, Any]) -> SourceFile:
    path = str(entry["name"])
    return SourceFile(
        name=path[len(folder) :].lstrip("/"), uri=fs.unstrip_protocol(path), size=int(entry.get("size") or 0)
    )


def _walk(root: str, listing: Listing) -> None:
    real_root = os.path.realpath(root)
    waiting = [root]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                    continue
                if entry.is_symlink() and os.path.isdir(entry.path):
                    listing.linked_folders += 1
                    continue
                real = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                out = entry.is_symlink() and not real.startswith(real_root.rstrip("/") + "/")
                if entry.is_symlink() and not os.path.exists(entry.path):
                    listing.broken_links += 1
                    continue
                if not out and not entry.is_file():
                    continue  # a socket or a pipe
                listing.files.append(
                    SourceFile(
                        name=os.path.relpath(entry.path, root),
                        uri=entry.path,
                        size=0 if out else entry.stat().st_size,
                        leads_out=out,
                    )
                )


def digests(listed: Sequence[SourceFile]) -> list[str]:
    """Return the identity of each file.

    Raises:
        AltDiffusionError: one cannot be read.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(_digest, listed))


def _digest(file: SourceFile) -> str:
    if file.leads_out:
        return _identity(0, b"", b"")
    with opened(file.uri) as source:
        if _is_read_whole(file.uri, file.size):
            return hashlib.file_digest(source, "sha256").hexdigest()
        head = source.read(_EDGE)
        source.seek(max(0, file.size - _EDGE))
        return _identity(file.size, head, source.read(_EDGE))


def _is_read_whole(uri: str, size: int) -> bool:
    return size <= _LARGE or files.is_local(uri)


def _identity(size: int, head: bytes, tail: bytes) -> str:
    """Return the identity of a large file from its size, its first and its last mebibyte."""
    return hashlib.sha256(b"%d\n" % size + head + tail).hexdigest()


def read_file(uri: str, digest: str, limit: int | None = None) -> bytes | int:
    """Return the bytes of a file that has this identity; its size where that is above `limit`.

    Raises:
        AltDiffusionError: it is gone, or another one since the job was planned.
    """
    with opened(uri) as source:
        size = source.seek(0, os.SEEK_END)
        source.seek(0)
        if limit is not None and size > limit:
            return int(size)
        body = bytes(source.read())
    if _is_read_whole(uri, len(body)):
        found = hashlib.sha256(body).hexdigest()
    else:
        found = _identity(len(body), body[:_EDGE], body[max(0, len(body) - _EDGE) :])
    if found != digest:
        raise changed(uri)
    return body


def check_identity(uri: str, digest: str) -> None:
    """Check that a file is the one that was planned.

    Raises:
        AltDiffusionError: it is gone, or another one.
    """
    fs, path = files.filesystem(uri)
    with opened(uri):
        pass
    if _digest(SourceFile(name="", uri=uri, size=int(fs.size(path)))) != digest:
        raise changed(uri)


def changed(uri: str) -> AltDiffusionError:
    """Return the error for a file that is another one than when the job was planned."""
    return AltDiffusionError(f"source file {uri}", "changed since planning", _AGAIN)


class opened:
    """A file of a source, open for reading.

    Raises:
        AltDiffusionError: it cannot be read, also by what is done within the block.
    """

    def __init__(self, uri: str) -> None:
        self._uri, self._file = uri, None

    def __enter__(self) -> Any:
        try:
            fs, path = files.filesystem(self._uri)
            self._file = fs.open(path, "rb")
            return self._file
        except Exception as error:
            if not files.is_of_storage(error):
                raise
            raise self._error(error) from error

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._file is not None:
            self._file.close()
        if isinstance(error, Exception) and files.is_of_storage(error):
            raise self._error(error) from error

    def _error(self, error: Exception) -> AltDiffusionError:
        problem = f"cannot be read ({getattr(error, 'strerror', None) or first_line(error)})"
        return AltDiffusionError(f"source file {self._uri}", problem, f"check its permissions, then {_AGAIN}")


def chunks(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of neighbouring ranges of at most `size`."""
    for start in range(0, count, size):
        yield start, min(start + size, count)
