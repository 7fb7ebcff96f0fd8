"""Files on any fsspec URI: atomic writes, put-if-absent, canonical JSON.

Local writes survive a power loss (temporary file, fsync, rename, fsync of the folder). Object stores publish a whole
object or nothing by themselves.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import fsspec
import fsspec.asyn
from fsspec.implementations.local import LocalFileSystem

from altdiffusion.credentials import has_placeholder
from altdiffusion.errors import AltDiffusionError, first_line

_FIRST = 8 << 20
"""Bytes that the first request for an object of S3 asks for."""
_CONFLICTS = 5
"""How often an object is created again after the store refused two writers at the same time."""
_STORES = {
    "botocore",
    "aiobotocore",
    "aiohttp",
    "google",
    "gcsfs",
    "azure",
    "adlfs",
    "huggingface_hub",
    "httpx",
    "httpx2",
}
"""Libraries whose errors are those of a storage."""
_BUSY = "the store limits requests or is down: wait, use fewer workers, then run the same command again"
_FULL = "free space in the store or raise its quota, then run the same command again; what is recorded is kept"
_REMEDIES = {
    "SlowDown": _BUSY,
    "ServiceUnavailable": _BUSY,
    "503": _BUSY,
    "429": _BUSY,
    "InsufficientStorage": _FULL,
    "QuotaExceeded": _FULL,
    "XMinioStorageFull": _FULL,
    "507": _FULL,
}
"""What to do about the codes of S3's answers."""
_EXTRAS = {"s3": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
"""The extra of this package that installs what opens addresses of a scheme."""
_ADDRESSES = "use a folder, or a file://, memory://, s3://, gs:// or az:// address"


def filesystem(uri: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URI and the path within it.

    Placeholders of credentials are refused, because a URI may come from a lake and a forged one would leak secrets.

    Raises:
        AltDiffusionError: the URI holds a placeholder, or cannot be opened.
    """
    if has_placeholder(uri):
        raise AltDiffusionError(
            f"storage {uri}",
            "holds a placeholder of a credential, which is filled in for tracking.uri only",
            "set the storage's own variables (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for S3) and leave it out",
        )
    if uri.startswith("/") and "::" not in uri:  # a plain path, without fsspec's parsing of chained addresses
        return _local(), uri.rstrip("/") or "/"
    try:
        fs, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        extra = _EXTRAS.get(uri.partition("://")[0]) if isinstance(error, ImportError) else None
        remedy = f"pip install 'altdiffusion-platform[{extra}]'" if extra else _ADDRESSES
        raise AltDiffusionError(f"storage {uri}", f"cannot be opened ({error})", remedy) from error
    return fs, path


@functools.lru_cache(maxsize=1)
def _local() -> LocalFileSystem:
    return LocalFileSystem()


def is_local(uri: str) -> bool:
    """Return whether the URI is a folder or file on this machine."""
    return isinstance(filesystem(uri)[0], LocalFileSystem)


def local_path(uri: str) -> str:
    """Return the plain path of a local URI.

    Raises:
        AltDiffusionError: the URI is not local.
    """
    fs, path = filesystem(uri)
    if not isinstance(fs, LocalFileSystem):
        raise AltDiffusionError(f"storage {uri}", "is not a local folder", "give a path on this machine")
    return str(path)


def anchored(uri: str) -> str:
    """Return a URI that means the same from any working directory, without a slash at its end."""
    return (local_path(uri) if is_local(uri) else uri).rstrip("/")


def join(uri: str, *parts: str) -> str:
    """Return the URI of a file or folder below `uri`.

    A part may come from a file of a lake, so no part may lead out of `uri`. All paths are checked in this one place.

    Raises:
        AltDiffusionError: a part holds `..` or a NUL.
    """
    for part in parts:
        if "\0" in part or ".." in part.split("/"):
            raise AltDiffusionError(
                f"name {part[:200]!r} below {uri}",
                "leads out of its folder",
                "use a plain name; if the name is from a file of the lake, that file was forged: remove it",
            )
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def beneath(root_uri: str, uri: str) -> str:
    """Return `uri` after a check that no symbolic link on the way from `root_uri` leads out of it.

    The root itself may be a link, since that is its owner's choice. Only local file systems have links.

    Raises:
        AltDiffusionError: `uri` is not below the root, or a link leads out of it.
    """
    fs, root = filesystem(root_uri)
    if not isinstance(fs, LocalFileSystem):
        if not uri.startswith(root_uri.rstrip("/") + "/"):
            raise _outside(root_uri, uri)
        return uri
    root, path = os.path.abspath(root), os.path.abspath(local_path(uri))
    if not path.startswith(root.rstrip("/") + "/"):
        raise _outside(root_uri, uri)
    if not _is_linked(root, path):
        return uri
    real_root, real = os.path.realpath(root), os.path.realpath(path)
    if not real.startswith(real_root.rstrip("/") + "/"):
        raise AltDiffusionError(
            f"file {uri}",
            f"leads through a symbolic link out of {root_uri}, to {real}",
            "remove the link; to keep data on another disk, mount it there or link the whole lake",
        )
    return uri


def _is_linked(root: str, path: str) -> bool:
    """Return whether a symbolic link is on the way from a folder to a path below it (one `lstat` per level)."""
    place = root.rstrip("/")
    for part in path[len(place) + 1 :].split("/"):
        place = f"{place}/{part}"
        try:
            if stat.S_ISLNK(os.lstat(place).st_mode):
                return True
        except (FileNotFoundError, NotADirectoryError):
            return False  # what is below it does not exist either
        except OSError:
            return True  # not known, so that the careful check decides
    return False


def within(root_uri: str, *parts: str) -> str:
    """Return `join(root_uri, *parts)` after a check that no symbolic link on the way leads out of the root.

    Raises:
        AltDiffusionError: a part or a link leads out of `root_uri`.
    """
    return beneath(root_uri, join(root_uri, *parts))


def _outside(root_uri: str, uri: str) -> AltDiffusionError:
    return AltDiffusionError(
        f"file {uri}", f"is not below {root_uri}", "the file that names it was forged: remove that file"
    )


def sha256_hex(data: bytes | memoryview) -> str:
    """Return the SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return the canonical encoding of a JSON value: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


@contextlib.contextmanager
def naming(uri: str, doing: str) -> Iterator[None]:
    """Turn an OSError (no space, no permission, a file in place of a folder) into an error that names `uri`.

    Raises:
        FileNotFoundError: unchanged.
        AltDiffusionError: any other OSError; `doing` names what failed ("reading").
    """
    try:
        yield
    except (FileNotFoundError, AltDiffusionError):
        raise
    except OSError as error:
        raise _failed(uri, doing, error) from error
    except Exception as error:
        if not is_of_storage(error):
            raise
        raise _failed(uri, doing, error) from error


def is_of_storage(error: Exception) -> bool:
    """Return whether a storage failed: by an OSError, or by an error of its library, which has no common base class."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _STORES


def _failed(uri: str, doing: str, error: Exception) -> AltDiffusionError:
    """Return the error for what a storage has refused."""
    number = getattr(error, "errno", None) or 0
    text = f"{errno.errorcode.get(number, '')} {getattr(error, 'strerror', None) or first_line(error)}".strip()
    remedy = {
        errno.ENOSPC: "free space there, then run the same command again; what is recorded is kept",
        errno.EACCES: "give this user write permission, or choose another folder",
        errno.EROFS: "choose a folder that can be written",
        errno.ENOTDIR: "a file is in the place of a folder: choose another path",
        errno.EEXIST: "a file is in the place of a folder: choose another path",
    }.get(number, "check the address and the connection, then run the same command again")
    remedy = _REMEDIES.get(str(_code_of(error)), remedy)
    denied = isinstance(error, PermissionError) or "Credentials" in type(error).__name__
    if denied and uri.startswith(("s3://", "s3a://")):
        remedy = (
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE) to those of a user who may read and "
            "write there, on every machine of the cluster; AWS_ENDPOINT_URL for a server other than Amazon's"
        )
    elif denied and not uri.startswith("/"):
        remedy = "set the credentials of that storage in its own environment variables, on every machine of the cluster"
    return AltDiffusionError(f"storage {uri}", f"{doing} failed ({text})", remedy)


def exists(uri: str) -> bool:
    """Return whether a file or folder exists."""
    fs, path = filesystem(uri)
    with naming(uri, "reading"):
        return bool(fs.exists(path))


def size_bytes(uri: str) -> int:
    """Return the size of a file in bytes.

    Raises:
        FileNotFoundError: there is no such file.
    """
    fs, path = filesystem(uri)
    with naming(uri, "reading"):
        return int(fs.size(path))


def read_bytes(uri: str) -> bytes:
    """Return the content of a file.

    Raises:
        FileNotFoundError: there is no such file, or a part of its path is a file.
    """
    fs, path = filesystem(uri)
    with naming(uri, "reading"):
        try:
            if isinstance(fs, LocalFileSystem):
                with open(path, "rb") as file:
                    return file.read()
            return _whole(fs, path) if _speaks_s3(fs) else bytes(fs.cat_file(path))
        except NotADirectoryError as error:
            raise FileNotFoundError(uri) from error


def _speaks_s3(fs: Any) -> bool:
    return "s3" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))


def _whole(fs: Any, path: str) -> bytes:
    """Return an object of S3, the rest of a large one in pieces at the same time.

    One request is enough for a small one; `cat_file` without a range asks for the size of every object first.
    """
    try:
        first = bytes(fs.cat_file(path, start=0, end=_FIRST))
    except OSError as error:
        if _is_empty(error):
            return b""
        raise
    return first if len(first) < _FIRST else first + _rest(fs, path)


def _rest(fs: Any, path: str) -> bytes:
    starts = list(range(_FIRST, int(fs.size(path)), _FIRST))
    pieces = fs.cat_ranges([path] * len(starts), starts, [start + _FIRST for start in starts])
    return b"".join(bytes(piece) for piece in pieces)


def _is_empty(error: Exception) -> bool:
    """Return whether S3 refused a range because the object has no bytes."""
    return _code_of(error) in ("InvalidRange", "416")


def _code_of(error: Exception) -> Any:
    """Return S3's own code of an error that s3fs translated; None where there is none."""
    return getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")


def read_many(uris: Sequence[str]) -> list[bytes | FileNotFoundError | AltDiffusionError]:
    """Return the content of files of one storage, or the error for each that cannot be read.

    An object store is asked for all of them at once, so that a round trip is not paid per file.
    """
    if not uris:
        return []
    fs, first = filesystem(uris[0])
    if len(uris) == 1:
        return [_content(uris[0], lambda: read_bytes(uris[0]))]
    if isinstance(fs, LocalFileSystem):
        return [_content(uri, lambda uri=uri: read_bytes(uri)) for uri in uris]  # type: ignore[misc]
    paths = [first, *(fs._strip_protocol(uri) for uri in uris[1:])]
    with naming(uris[0], "reading"):
        if not _speaks_s3(fs):
            found = fs.cat_ranges(paths, None, None, on_error="return")
        else:  # as in `_whole`
            found = fs.cat_ranges(paths, 0, _FIRST, on_error="return")
            found = [_completed(fs, path, value) for path, value in zip(paths, found, strict=True)]
    return [_content(uri, lambda value=value: value) for uri, value in zip(uris, found, strict=True)]  # type: ignore[misc]


def _completed(fs: Any, path: str, first: Any) -> Any:
    if isinstance(first, Exception):
        return b"" if _is_empty(first) else first
    return first if len(first) < _FIRST else bytes(first) + _rest(fs, path)


def read_ranges(uri: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Return ranges of a file, each by offset and size; one that reaches beyond its end is shorter.

    An object store is asked for all of them at once.

    Raises:
        FileNotFoundError: there is no such file.
    """
    fs, path = filesystem(uri)
    with naming(uri, "reading"):
        if isinstance(fs, LocalFileSystem):
            with open(path, "rb") as file:
                return [os.pread(file.fileno(), size, start) for start, size in ranges]
        starts, ends = [start for start, _ in ranges], [start + size for start, size in ranges]
        return [bytes(data) for data in fs.cat_ranges([path] * len(ranges), starts, ends)]


def _content(uri: str, read: Callable[[], Any]) -> bytes | FileNotFoundError | AltDiffusionError:
    try:
        with naming(uri, "reading"):
            value = read()
            if isinstance(value, Exception):
                raise value
            return bytes(value)
    except (FileNotFoundError, AltDiffusionError) as error:
        return error


def read_json(uri: str, *, strict: bool = False) -> Any:
    """Return the value in a JSON file.

    Args:
        strict: refuse values that our own writers never write and that could not be written again: NaN, infinities, a
            repeated key in one object, half a surrogate pair.

    Raises:
        FileNotFoundError: there is no such file.
        AltDiffusionError: it is not JSON.
    """
    return parse_json(uri, read_bytes(uri), strict=strict)


def parse_json(uri: str, data: bytes, *, strict: bool = False) -> Any:
    """Return the value that the content of a JSON file means; `read_json` describes the rest."""
    try:
        if not strict:
            return json.loads(data)
        value = json.loads(data, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_each_key_once)
        if b"\\u" in data:
            canonical_json(value)  # fails on a single surrogate, which cannot be encoded
        return value
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number of 5,000 digits, nested too deeply
        raise AltDiffusionError(
            f"file {uri}", f"is not JSON ({error})", "it was damaged: restore or delete it"
        ) from error


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        twice = next(key for key in mapping if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"the key {twice[:80]!r} is repeated")
    return mapping


def list_names(uri: str) -> list[str]:
    """Return the sorted names directly below a folder; empty if the folder does not exist."""
    names = {str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in _entries(uri, detail=False)}
    return sorted(name for name in names if not name.startswith(".tmp-"))


def list_folders(uri: str) -> list[str]:
    """Return the sorted names of the folders (and links) directly below a folder; empty if it does not exist.

    Names with a leading dot and plain files are left out. File managers and editors create them, our writers do not.
    """
    entries = _entries(uri, detail=True)
    names = {str(entry["name"]).rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] != "file"}
    return sorted(name for name in names if not name.startswith("."))


def list_details(uri: str) -> list[dict[str, Any]]:
    """Return what the storage states of each entry directly below a folder: `name`, `type`, `size`, a time."""
    return sorted(_entries(uri, detail=True), key=lambda entry: str(entry["name"]))


def _entries(uri: str, *, detail: bool) -> list[Any]:
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    try:
        with naming(uri, "listing"):
            try:
                if _speaks_s3(fs):  # `ls` lists the folder above too where it finds nothing
                    found = fsspec.asyn.sync(fs.loop, fs._lsdir, path, refresh=True)
                    return found if detail else [entry["name"] for entry in found]
                return list(fs.ls(path, detail=detail))
            except NotADirectoryError as error:
                raise AltDiffusionError(f"storage {uri}", "is a file, not a folder", "choose another path") from error
    except FileNotFoundError:
        return []


def write_atomic(uri: str, data: bytes | memoryview) -> None:
    """Write a whole file or nothing, replacing an older one."""
    fs, path = filesystem(uri)
    with naming(uri, "writing"):
        if not isinstance(fs, LocalFileSystem):
            fs.pipe_file(path, bytes(data))  # of bytes, that makes no copy
            return
        with _temporary(path, data) as temporary:
            os.replace(temporary, path)
        sync_folder(os.path.dirname(path))


def check_local_output(what: str, path: str) -> None:
    """Refuse a path of this machine where no file can be written, before work is done for it; nothing is written.

    Raises:
        AltDiffusionError: it is not a local path, is a folder, or is below a file or a folder that is not writable.
    """
    if "://" in path:
        raise AltDiffusionError(what, "is not a local file", "give a path on this machine")
    if os.path.isdir(path):
        raise AltDiffusionError(what, "is a folder", "give the path of a file")
    parent = os.path.dirname(os.path.abspath(path))
    while not os.path.lexists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        raise AltDiffusionError(what, f"cannot be written: {parent} is a file", "give another path")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise AltDiffusionError(what, f"cannot be written: {parent} is not writable", "give another path")


def put_if_absent(uri: str, data: bytes) -> bool:
    """Write a file only if it does not exist, and return whether it was; exactly one of several writers succeeds."""
    fs, path = filesystem(uri)
    with naming(uri, "writing"):
        if not isinstance(fs, LocalFileSystem):
            return _create(fs, path, data)
        with _temporary(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            finally:
                os.unlink(temporary)
        sync_folder(os.path.dirname(path))
        return True


def _create(fs: Any, path: str, data: bytes) -> bool:
    """Write an object that does not exist, with `If-None-Match: *` on S3, and return whether it was.

    Of the stores that speak S3, some name the header that did not hold in their answer and some do not. Two writers at
    the same time may both be refused (409), and then have to ask again.
    """
    for left in reversed(range(_CONFLICTS)):
        try:
            fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            code = _code_of(error)
            if code in ("PreconditionFailed", "412"):
                return False
            if code not in ("ConditionalRequestConflict", "409") or not left:
                raise
        else:
            return True
    return False


def remove_tree(uri: str, *, below: str | None = None) -> None:
    """Remove a file or folder if it exists. A symbolic link is removed, not its target.

    Args:
        below: a folder that must hold it, so that no forged name and no link on the way deletes anything elsewhere.

    Raises:
        AltDiffusionError: it is outside of that folder.
    """
    fs, path = filesystem(uri)
    if not isinstance(fs, LocalFileSystem):
        if below is not None:
            beneath(below, uri)
        if fs.exists(path):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                fs.rm(path, recursive=True)
        return
    parent = os.path.dirname(path)
    if below is not None and os.path.abspath(parent) != os.path.abspath(local_path(below)):
        beneath(below, parent)
    if os.path.islink(path):
        os.unlink(path)
    elif os.path.lexists(path):
        with contextlib.suppress(FileNotFoundError):
            fs.rm(path, recursive=True)


@contextlib.contextmanager
def _temporary(path: str, data: bytes | memoryview) -> Iterator[str]:
    with unnamed(os.path.dirname(path)) as temporary:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary


@contextlib.contextmanager
def unnamed(folder: str) -> Iterator[str]:
    """Yield the path of a file to make, which is removed at the end unless it has been given its name."""
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".tmp-{uuid.uuid4().hex}")
    try:
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def sync_folder(folder: str) -> None:
    """Write the entries of a local folder to disk, so that new and renamed files survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_tree(source_uri: str, target_uri: str) -> None:
    """Copy a folder file by file.

    The copy is not atomic as a whole: the caller copies to a temporary name, or writes a completion file last.

    Raises:
        FileNotFoundError: the source does not exist.
    """
    source_fs, source = filesystem(source_uri)
    names = source_fs.find(source)
    if not names:
        raise FileNotFoundError(source_uri)
    root = str(source).rstrip("/")
    for name in sorted(names):
        write_atomic(join(target_uri, str(name)[len(root) :]), read_bytes(source_fs.unstrip_protocol(name)))
