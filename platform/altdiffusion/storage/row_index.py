"""The index of rows: which files hold a row of a certain id, link or image, without reading every shard.

    <lake>/index/rows/<SHA-256 of its list of files>.rows

Each file of the index (a segment) covers up to about `SEGMENT_ROWS` rows of certain shards and rejects, which it names
by their SHA-256. Shards never change, so that a segment is never out of date: it counts for the shards that it names
and for no others, in whichever versions they are. An entry is a key of 8 bytes, a shard and a row. Keys of different
values may be equal, so that a caller reads the row itself before an answer is given. A segment is a head with a
checksum, then sorted blocks of `BLOCK` entries with a checksum each. A damaged one counts as missing, and its shards
are read and indexed again.

Like the index of manifests, this one is a cache: it can be deleted at any time, holds hashes only, and is not used by
what removes, erases or verifies rows.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.storage import files

log = logging.getLogger(__name__)

FOLDER = ("index", "rows")
SUFFIX = ".rows"
FORMAT = "altdiffusion-rows-1"
BLOCK = 1024
"""Entries that are read, and verified, at once: 16 KiB."""
SEGMENT_ROWS = 4 << 20
"""Rows from which on a segment is full; while it is made, it takes about 100 bytes of memory per row."""
_ENTRY = 16
_PREAMBLE = 72
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Key = tuple[str, str]
"""A file: its folder below the lake, and its SHA-256."""
Hits = Mapping[Key, Mapping[str, I64]]
"""Row numbers, ascending, by file and by the kind of key that found them."""


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The entries of one kind of key."""

    kind: str
    entries: int
    at: int
    """Offset of its first block in the file."""
    first: U64
    """First key of each block."""
    crc: U32
    """CRC-32 of each block."""


@dataclass(frozen=True, kw_only=True)
class _Segment:
    uri: str
    covered: tuple[Key, ...]
    parts: tuple[_Part, ...]


class _Damaged(ValueError):
    """A segment is not as it was written."""


class RowIndex:
    """The segments of a lake, as one listing found them.

    Args:
        present: the files that the lake's versions name; others are not searched for.
    """

    def __init__(self, lake_uri: str, present: Sequence[Key]) -> None:
        self._lake = lake_uri
        self._present = frozenset(present)
        self._segments: list[_Segment] = []
        for uri in _listed(files.join(lake_uri, *FOLDER)):
            try:
                self._segments.append(_open(uri))
            except (AltDiffusionError, OSError, ValueError, KeyError, TypeError) as error:
                self._drop(uri, error)
        for segment in list(self._segments):
            if self._present.isdisjoint(segment.covered):  # of shards that were erased
                self._segments.remove(segment)
                self._remove(segment.uri)

    @property
    def covered(self) -> frozenset[Key]:
        """The files whose rows `find` answers for."""
        return self._present.intersection(key for segment in self._segments for key in segment.covered)

    def find(self, asked: Mapping[str, U64]) -> dict[Key, dict[str, I64]]:
        """Return where rows of these keys may be, by kind of key; a segment that is found damaged no longer counts."""
        found: dict[Key, dict[str, list[I64]]] = {}
        for segment in list(self._segments):
            try:
                hits = [
                    (part.kind, *_find(segment.uri, part, np.unique(asked[part.kind])))
                    for part in segment.parts
                    if len(asked.get(part.kind, ()))
                ]
            except (AltDiffusionError, OSError, _Damaged) as error:
                self._segments.remove(segment)
                self._drop(segment.uri, error)
                continue
            for kind, numbers, rows in hits:
                for number in np.unique(numbers).tolist():
                    if number < len(segment.covered) and segment.covered[number] in self._present:
                        by_kind = found.setdefault(segment.covered[number], {})
                        by_kind.setdefault(kind, []).append(rows[numbers == number].astype(np.int64))
        return {key: {kind: np.unique(np.concatenate(rows)) for kind, rows in v.items()} for key, v in found.items()}

    def builder(self) -> Builder:
        """Return what makes segments for files that are not covered yet."""
        return Builder(self._lake)

    def _drop(self, uri: str, error: Exception) -> None:
        log.info("index of rows %s is not used (%s)", uri, first_line(error))
        if not isinstance(error, (AltDiffusionError, OSError)):  # it is damaged, and not only out of reach
            self._remove(uri)

    def _remove(self, uri: str) -> None:
        try:
            files.remove_tree(uri, below=files.join(self._lake, *FOLDER))
        except (AltDiffusionError, OSError) as error:  # a lake that may only be read
            log.info("index of rows %s is not removed (%s)", uri, first_line(error))


class Builder:
    """Collects the keys of files, and writes a segment whenever it is full."""

    def __init__(self, lake_uri: str) -> None:
        self._lake = lake_uri
        self._rows = 0
        self._covered: list[Key] = []
        self._keys: dict[str, list[tuple[U64, U32, U32]]] = {}

    def add(self, key: Key, rows: int, keys: Mapping[str, tuple[U64, U32]]) -> None:
        """Add a file.

        Args:
            rows: number of its rows.
            keys: by kind: the keys, uint64 [N], and the numbers of their rows in the file, uint32 [N].
        """
        number = np.uint32(len(self._covered))
        self._covered.append(key)
        for kind, (values, places) in keys.items():
            self._keys.setdefault(kind, []).append((values, np.full(len(values), number, np.uint32), places))
        self._rows += rows
        if self._rows >= SEGMENT_ROWS:
            self.finish()

    def finish(self) -> None:
        """Write what was collected; a lake that may only be read stays without an index."""
        if not self._covered:
            return
        try:
            listed = files.canonical_json([list(key) for key in self._covered])
            uri = files.within(self._lake, *FOLDER, f"{files.sha256_hex(listed)}{SUFFIX}")
            files.write_atomic(uri, _encode(self._covered, self._keys))
        except (AltDiffusionError, OSError) as error:
            log.info("an index of rows is not written (%s)", first_line(error))
        self._covered, self._keys, self._rows = [], {}, 0


def _encode(covered: Sequence[Key], keys: Mapping[str, Sequence[tuple[U64, U32, U32]]]) -> bytes:
    """Return a segment: preamble (size and SHA-256 of the head), head (JSON and tables of blocks), blocks."""
    parts: list[dict[str, Any]] = []
    tables: list[bytes] = []
    blocks: list[bytes] = []
    at = 0
    for kind in sorted(keys):
        values, numbers, places = (np.concatenate(column) for column in zip(*keys[kind], strict=True))
        order = np.lexsort((places, numbers, values))
        values, numbers, places = values[order], numbers[order], places[order]
        parts.append({"kind": kind, "entries": len(values), "at": at})
        starts = range(0, len(values), BLOCK)
        mine = [
            b"".join(column[start : start + BLOCK].tobytes() for column in (values, numbers, places))
            for start in starts
        ]
        tables += [values[::BLOCK].tobytes(), np.array([zlib.crc32(one) for one in mine], np.uint32).tobytes()]
        blocks += mine
        at += len(values) * _ENTRY
    facts = files.canonical_json({"format": FORMAT, "files": [list(key) for key in covered], "parts": parts})
    head = len(facts).to_bytes(8, "little") + facts + b"".join(tables)
    preamble = len(head).to_bytes(8, "little") + files.sha256_hex(head).encode()
    return b"".join([preamble, head, *blocks])


def _listed(folder: str) -> list[str]:
    try:
        return [files.within(folder, name) for name in files.list_names(folder) if name.endswith(SUFFIX)]
    except (AltDiffusionError, OSError) as error:
        log.info("the index of rows in %s is not used (%s)", folder, first_line(error))
        return []


def _open(uri: str) -> _Segment:
    """Return a segment, whose head is verified.

    Raises:
        _Damaged: it is of another form, or damaged.
    """
    (preamble,) = files.read_ranges(uri, [(0, _PREAMBLE)])
    size = int.from_bytes(preamble[:8], "little")
    if len(preamble) != _PREAMBLE or size > files.size_bytes(uri):
        raise _Damaged("it is cut")
    (head,) = files.read_ranges(uri, [(_PREAMBLE, size)])
    if files.sha256_hex(head).encode() != preamble[8:]:
        raise _Damaged("its head has another SHA-256")
    length = int.from_bytes(head[:8], "little")
    facts = json.loads(head[8 : 8 + length])
    if facts["format"] != FORMAT:
        raise _Damaged("it is of another version")
    parts, place = [], 8 + length
    for part in facts["parts"]:
        count = -(-part["entries"] // BLOCK)
        first = np.frombuffer(head, np.uint64, count, place)
        crc = np.frombuffer(head, np.uint32, count, place + 8 * count)
        place += 12 * count
        at = _PREAMBLE + size + part["at"]
        parts.append(_Part(kind=part["kind"], entries=part["entries"], at=at, first=first, crc=crc))
    return _Segment(uri=uri, covered=tuple((folder, sha) for folder, sha in facts["files"]), parts=tuple(parts))


def _find(uri: str, part: _Part, asked: U64) -> tuple[U32, U32]:
    """Return files (numbers in the segment) and rows of the entries with these keys.

    Args:
        asked: keys, ascending and distinct.

    Raises:
        _Damaged: a block is not as it was written.
    """
    # Equal keys may begin at the end of the block before the one that begins with them.
    low = np.maximum(np.searchsorted(part.first, asked, "left") - 1, 0)
    high = np.searchsorted(part.first, asked, "right")
    wanted = sorted({block for a, b in zip(low.tolist(), high.tolist(), strict=True) for block in range(a, b)})
    numbers: list[U32] = [np.zeros(0, np.uint32)]
    places: list[U32] = [np.zeros(0, np.uint32)]
    for block, data in zip(wanted, _blocks(uri, part, wanted), strict=True):
        count = len(data) // _ENTRY
        if count != min(BLOCK, part.entries - block * BLOCK) or zlib.crc32(data) != int(part.crc[block]):
            raise _Damaged(f"block {block} of its {part.kind} keys has another CRC-32")
        keys = np.frombuffer(data, np.uint64, count)
        at = np.minimum(np.searchsorted(asked, keys), len(asked) - 1)
        chosen = asked[at] == keys
        numbers.append(np.frombuffer(data, np.uint32, count, 8 * count)[chosen])
        places.append(np.frombuffer(data, np.uint32, count, 12 * count)[chosen])
    return np.concatenate(numbers), np.concatenate(places)


def _blocks(uri: str, part: _Part, wanted: Sequence[int]) -> Iterator[bytes]:
    """Yield blocks, some at a time."""
    for start in range(0, len(wanted), 256):
        ranges = [
            (part.at + block * BLOCK * _ENTRY, min(BLOCK, part.entries - block * BLOCK) * _ENTRY)
            for block in wanted[start : start + 256]
        ]
        yield from files.read_ranges(uri, ranges)
