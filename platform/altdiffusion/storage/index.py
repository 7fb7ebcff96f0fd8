"""The index of a lake: what its manifests, checkpoints and exports state, so that not every file is read every time.

    <lake>/index/<name>.json    SHA-256 of the rest, a newline, and JSON: stamp and summary of each file

The index is a cache and never the truth. Every use lists the files themselves, and an entry counts only if the file's
stamp is unchanged since it was read. So files that another process added, removed or changed are noticed, a damaged
index is as good as none, and of two writers the last one wins without harm. It can be deleted at any time, and nothing
that removes, erases, trains or verifies reads it in place of a manifest.

An index is written when at least `KEEP_FROM` files had to be read, so that a small lake has none.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.storage import files
from altdiffusion.storage.documents import Document
from altdiffusion.storage.listing import Marked, list_marked

log = logging.getLogger(__name__)

FOLDER = "index"
FORMAT = "altdiffusion-index-1"
KEEP_FROM = 64
"""Files that must have been read before the index is written again."""
_AT_ONCE = 256
"""Files that are read in one go: object stores answer such requests side by side."""
_SEPARATOR = "/"
T = TypeVar("T")
Entries = dict[str, tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Shelf(Generic[T]):
    """The files of one kind below one folder, and how they are read."""

    lake_uri: str
    name: str
    """Name of the index: a path below `<lake>/index`, without its ending."""
    root_uri: str
    depth: int
    """Levels of folders between the root and a file."""
    file: str
    describe: Callable[[str, tuple[str, ...], bytes], Mapping[str, Any]]
    """Checks a file (its URI, the names of its folders, its content) and returns the summary to keep, as JSON."""
    build: Callable[[tuple[str, ...], Document], T]
    """Makes the result from a summary, with all checks of its values."""


@dataclass(frozen=True, kw_only=True)
class Found(Generic[T]):
    """What is on a shelf."""

    things: Mapping[tuple[str, ...], T]
    """By the names of the folders."""
    damaged: tuple[AltDiffusionError, ...]
    """One error per file that cannot be used."""


def read_shelf(shelf: Shelf[T]) -> Found[T]:
    """Return everything on a shelf, from the index where a file is unchanged."""
    marked = list_marked(shelf.root_uri, shelf.depth, shelf.file)
    uri = files.within(shelf.lake_uri, FOLDER, f"{shelf.name}.json")
    known = _load(uri) if marked else {}
    things: dict[tuple[str, ...], T] = {}
    stale: list[Marked] = []
    for one in marked:
        stamp, summary = known.get(_SEPARATOR.join(one.parts), ("", {}))
        try:
            if not stamp or stamp != one.stamp:
                raise LookupError
            things[one.parts] = shelf.build(one.parts, Document(uri, summary))
        except (LookupError, AltDiffusionError):
            stale.append(one)
    damaged: list[AltDiffusionError] = []
    fresh: Entries = {}
    for start in range(0, len(stale), _AT_ONCE):
        _read(shelf, stale[start : start + _AT_ONCE], things, fresh, damaged)
    if len(fresh) >= KEEP_FROM:
        _store(uri, {key: known[key] for key in map(_key, marked) if key in known} | fresh)
    return Found(things={one.parts: things[one.parts] for one in marked if one.parts in things}, damaged=tuple(damaged))


def _key(one: Marked) -> str:
    return _SEPARATOR.join(one.parts)


def _read(
    shelf: Shelf[T],
    stale: Sequence[Marked],
    things: dict[tuple[str, ...], T],
    fresh: Entries,
    damaged: list[AltDiffusionError],
) -> None:
    """Read files; a file that was removed since the listing is left out."""
    uris = []
    for one in list(stale):
        parts = (*one.parts, shelf.file)
        try:
            # A stamp is only given where no link is on the way, so that only the others need the check.
            uris.append(
                (one, files.join(shelf.root_uri, *parts) if one.stamp else files.within(shelf.root_uri, *parts))
            )
        except AltDiffusionError as error:
            damaged.append(error)
    contents = files.read_many([uri for _, uri in uris])
    for (one, uri), data in zip(uris, contents, strict=True):
        if isinstance(data, FileNotFoundError):
            continue
        try:
            if isinstance(data, AltDiffusionError):
                raise data
            summary = shelf.describe(uri, one.parts, data)
            things[one.parts] = shelf.build(one.parts, Document(uri, summary))
        except AltDiffusionError as error:
            damaged.append(error)
            continue
        if one.stamp:
            fresh[_key(one)] = (one.stamp, summary)


def _load(uri: str) -> Entries:
    """Return the entries of an index; none where it is missing, damaged or of another version."""
    try:
        seal, _, body = files.read_bytes(uri).partition(b"\n")
        if files.sha256_hex(body) != seal.decode("ascii", "replace"):
            raise ValueError("its SHA-256 is not that of its content")
        value = json.loads(body)
        if value["format"] != FORMAT:
            return {}
        return {str(key): (str(stamp), dict(summary)) for key, (stamp, summary) in value["entries"].items()}
    except FileNotFoundError:
        return {}
    except (AltDiffusionError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.info("index %s is not used (%s), and is written again", uri, first_line(error))
        return {}


def _store(uri: str, entries: Entries) -> None:
    body = files.canonical_json({"format": FORMAT, "entries": entries})
    try:
        files.write_atomic(uri, files.sha256_hex(body).encode() + b"\n" + body)
    except (AltDiffusionError, OSError) as error:  # a lake that may only be read
        log.info("index %s is not written (%s)", uri, first_line(error))
