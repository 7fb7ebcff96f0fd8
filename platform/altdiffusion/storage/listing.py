"""One listing of the files that complete things: manifests, COMPLETE.json, lineage.json.

Each is found with a stamp that changes whenever the file does, so that what was read from it can be kept
(`storage.index`). A local folder costs one scan per folder and one `lstat` per file; an object store costs one listing
of the prefix, 1,000 keys per request, whatever the number of folders.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from altdiffusion.storage import files

_TAGS = ("ETag", "etag", "content_md5", "md5Hash")
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")


@dataclass(frozen=True, slots=True)
class Marked:
    """A folder that holds the file in question."""

    parts: tuple[str, ...]
    """Names of the folders from the root to it."""
    stamp: str
    """Differs as soon as the file does; empty where that cannot be known, or where a symbolic link is on the way."""


def list_marked(root_uri: str, depth: int, name: str) -> list[Marked]:
    """Return the folders `depth` levels below a root that hold a file `name`, sorted; none if there is no such root.

    Names with a leading dot are left out: our writers do not create them.
    """
    fs, root = files.filesystem(root_uri)
    if files.is_local(root_uri):
        return sorted(_local(str(root), depth, name, (), linked=False), key=lambda one: one.parts)
    fs.invalidate_cache()
    found = []
    start = len(str(root).rstrip("/")) + 1
    with files.naming(root_uri, "listing"):
        entries = fs.find(root, detail=True)
    for path, entry in entries.items():
        *parts, last = str(path)[start:].split("/")
        if len(parts) == depth and last == name and not any(part.startswith(".") for part in parts):
            found.append(Marked(tuple(parts), _stamp(entry)))
    return sorted(found, key=lambda one: one.parts)


def list_files(root_uri: str) -> dict[str, str]:
    """Return the stamp (`Marked.stamp`) of each file directly below a folder by its name.

    A folder that does not exist has no files. Names with a leading dot are left out.
    """
    if files.is_local(root_uri):
        return dict(_local_files(files.local_path(root_uri)))
    found = {}
    for entry in files.list_details(root_uri):
        name = str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]
        if entry["type"] == "file" and not name.startswith("."):
            found[name] = _stamp(entry)
    return found


def _local_files(folder: str) -> Iterator[tuple[str, str]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name[0] == "." or entry.is_dir():
                    continue
                try:
                    facts = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # removed since
                yield entry.name, _local_stamp(facts, stat.S_ISLNK(facts.st_mode))
    except (FileNotFoundError, NotADirectoryError):
        return


def _local_stamp(facts: os.stat_result, is_linked: bool) -> str:
    if is_linked:
        return ""
    return f"{facts.st_size}-{facts.st_mtime_ns}-{facts.st_ctime_ns}-{facts.st_ino}"


def _local(folder: str, depth: int, name: str, parts: tuple[str, ...], *, linked: bool) -> Iterator[Marked]:
    if depth == 0:
        try:
            facts = os.lstat(os.path.join(folder, name))
        except (FileNotFoundError, NotADirectoryError):
            return
        yield Marked(parts, _local_stamp(facts, linked or stat.S_ISLNK(facts.st_mode)))
        return
    try:
        with os.scandir(folder) as entries:
            below = [(entry.name, entry.is_symlink()) for entry in entries if entry.is_dir() and entry.name[0] != "."]
    except (FileNotFoundError, NotADirectoryError):
        return
    for child, is_link in below:
        yield from _local(os.path.join(folder, child), depth - 1, name, (*parts, child), linked=linked or is_link)


def _stamp(entry: Mapping[str, object]) -> str:
    tag = next((entry[key] for key in _TAGS if entry.get(key)), None)
    when = next((entry[key] for key in _TIMES if entry.get(key)), None)
    return "" if tag is None and when is None else f"{entry.get('size')}-{tag}-{when}"
