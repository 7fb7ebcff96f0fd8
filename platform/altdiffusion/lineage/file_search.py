"""Where an image file comes from: by its bytes, by the record that it carries, or by what it looks like.

The order is that of certainty. Equal bytes prove it. A row key in the file's own record is a statement, which is
compared with the lake's row and with the pixels. A perceptual hash makes an origin probable, never certain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc

from altdiffusion.image_files.extract import Carried, read_carried, read_file, read_pixels
from altdiffusion.image_files.phash import distance, distances, is_plain, phash_rgb
from altdiffusion.image_files.record import FileRecord
from altdiffusion.lineage import image_search
from altdiffusion.lineage.graph import Graph, Slice
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Version
from altdiffusion.storage.shard_columns import read_columns

NEAR = 10
"""Bits of 64 in which a file's perceptual hash may differ from that of the image that it probably is a copy of.

Measured (tests/unit/test_file_search.py): copies in other formats, sizes and qualities differ in at most 6 bits,
different images in at least 16.
"""
MAX_CANDIDATES = 5
THREADS = 16
_COMPARED = ("prompt", "negative_prompt", "seed", "width", "height", "steps", "guidance_scale", "sampler")
_ROW = (*_COMPARED, "image_sha256", "checkpoint", "row_key", "perceptual_hash")
Match = Literal["bytes", "record", "probable"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contradiction:
    """A value that the file and the lake state differently."""

    name: str
    file: Any
    lake: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """An image of the lake that the file is a copy of."""

    image_sha256: str
    version: str
    distance: int | None
    """Bits in which the perceptual hashes differ; None where one is missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileOrigin:
    """What is known of a file."""

    path: str
    sha256: str
    lake_uri: str | None
    carried: Carried
    match: Match | None = None
    candidates: tuple[Candidate, ...] = ()
    """What the file is a copy of, the nearest first."""
    contradictions: tuple[Contradiction, ...] = ()
    edited: bool = False
    """Whether the record's row key is not that of its other values."""
    unlike: bool = False
    """Whether the pixels are those of another image than the one that the record names."""
    unsearched: str = ""
    """Why the image was not searched by what it looks like."""
    part: Slice | None = None
    """The lineage of the first candidate."""

    @property
    def is_explained(self) -> bool:
        """Whether an origin is known, and nothing contradicts it."""
        contradicted = bool(self.contradictions) or self.edited or self.unlike or bool(self.carried.problem)
        return (self.match is not None or self.carried.record is not None) and not contradicted


def trace(path: str, graph: Graph | None) -> FileOrigin:
    """Return where a file comes from.

    Args:
        graph: of the lake to look in; None only reads the file's own record.

    Raises:
        AltDiffusionError: the file or the lake cannot be read.
    """
    data = read_file(path)
    carried = read_carried(data)
    record = carried.record
    known: dict[str, Any] = {
        "path": path, "sha256": files.sha256_hex(data), "carried": carried,
        "lake_uri": None if graph is None else graph.lake_uri,
        "edited": record is not None and not record.is_consistent,
    }  # fmt: skip
    if graph is None:
        return FileOrigin(**known)
    if image_search.holding(graph, known["sha256"]):
        return _explained(graph, known, "bytes", [Candidate(image_sha256=known["sha256"], version="", distance=0)])
    pixels = read_pixels(data)
    own = None if pixels is None else phash_rgb(pixels)
    if record is not None:
        found = list(_with_key(graph, record.row_key))
        if found:
            candidates = [_candidate(version, row, own) for version, row in found]
            return _explained(graph, known, "record", candidates, own=own)
    if own is None or is_plain(own):
        why = "cannot be decoded" if own is None else "has too little structure"
        return FileOrigin(**known, unsearched=why)
    near = _nearest(graph, own)
    return _explained(graph, known, "probable", near, own=own) if near else FileOrigin(**known)


def _explained(
    graph: Graph, known: Mapping[str, Any], match: Match, candidates: Sequence[Candidate], own: int | None = None
) -> FileOrigin:
    """Return the origin with its lineage, after the record is compared with the lake's row."""
    first = candidates[0]
    record: FileRecord | None = known["carried"].record
    row = _generated(graph, first.image_sha256)
    far = own is not None and not is_plain(own) and first.distance is not None and first.distance > NEAR
    return FileOrigin(
        **known,
        match=match,
        candidates=tuple(candidates),
        contradictions=tuple(_contradictions(record, row)) if record is not None and row is not None else (),
        unlike=match == "record" and far,
        part=image_search.lineage(graph, f"image:{first.image_sha256}", "up"),
    )


def _contradictions(record: FileRecord, row: Mapping[str, Any]) -> Iterator[Contradiction]:
    for name in _COMPARED:
        stated = record.image.get(name)
        if (stated or None) != (row[name] or None):
            yield Contradiction(name=name, file=stated, lake=row[name])
    if record.model != row["checkpoint"]:
        yield Contradiction(name="model", file=record.model, lake=row["checkpoint"])
    if row["row_key"] is not None and record.row_key != row["row_key"]:
        yield Contradiction(name="row_key", file=record.row_key, lake=row["row_key"])


def _generated(graph: Graph, image_sha256: str) -> dict[str, Any] | None:
    """Return the first row of a generated image; None for one that was collected."""
    for _, row in _rows(graph, "image_sha256", image_sha256):
        return row
    return None


def _with_key(graph: Graph, row_key: str) -> Iterator[tuple[Version, dict[str, Any]]]:
    """Yield one row per image whose row key is this."""
    seen = set()
    for version, row in _rows(graph, "row_key", row_key):
        if row["image_sha256"] not in seen:
            seen.add(row["image_sha256"])
            yield version, row


def _rows(graph: Graph, column: str, value: str) -> Iterator[tuple[Version, dict[str, Any]]]:
    for version in image_search.versions_of(graph, "generations"):
        for table in version.iter_tables(_ROW):
            if column in table.column_names:
                for row in table.filter(pc.equal(table[column], value)).to_pylist():
                    yield version, {name: row.get(name) for name in _ROW}


def _candidate(version: Version, row: Mapping[str, Any], own: int | None) -> Candidate:
    there = row["perceptual_hash"]
    bits = None if own is None or there is None else distance(own, there)
    return Candidate(image_sha256=row["image_sha256"], version=version.ref.short, distance=bits)


def _nearest(graph: Graph, own: int) -> list[Candidate]:
    """Return the images whose hashes are near, the nearest first; of each shard one column is read to find them."""
    found: dict[str, Candidate] = {}
    for version in image_search.versions_of(graph, "generations"):
        folder = files.join(version.folder_uri, "shards")

        def near(index: int, version: Version = version, folder: str = folder) -> list[Candidate]:
            hashes = read_columns(folder, version.shards[index], ["perceptual_hash"])
            if "perceptual_hash" not in hashes.column_names:
                return []
            column = hashes["perceptual_hash"]
            bits = distances(own, np.asarray(pc.fill_null(column, 0).to_numpy(), np.int64))
            places = np.flatnonzero((bits <= NEAR) & np.asarray(pc.is_valid(column).to_numpy(), bool))
            if not len(places):
                return []
            names = read_columns(folder, version.shards[index], ["image_sha256"])["image_sha256"]
            return [
                Candidate(image_sha256=names[int(place)].as_py(), version=version.ref.short, distance=int(bits[place]))
                for place in places
            ]

        with ThreadPoolExecutor(THREADS) as pool:
            for candidates in pool.map(near, range(len(version.shards))):
                for one in candidates:
                    found.setdefault(one.image_sha256, one)
    return sorted(found.values(), key=lambda one: (one.distance, one.image_sha256))[:MAX_CANDIDATES]
