"""Other rows of a lake with the image of a found row: the same bytes, or a perceptual hash that is nearly the same."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.storage import files
from altdiffusion.storage.dataset import Version
from altdiffusion.storage.holdings import THREADS, Holdings, Rows
from altdiffusion.storage.shard_columns import read_columns
from altdiffusion.storage.shards import ShardInfo

ALIKE_BITS = 4
"""Bits of 64 in which the hashes of two images may differ that are called alike: what JPEG at quality 60 changes."""
_HASHES = ("phash", "perceptual_hash")
"""Columns of the perceptual hash, by the kind of the dataset."""
_LEAST_BITS = 24
"""A hash with fewer bits set is of an image with hardly any structure (`image_files.phash`), and resembles too many."""


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """The other rows that have the images of found rows, and those images."""

    same_bytes: int
    """Number of other rows whose image has the same bytes; a row that several versions hold counts once."""
    alike: int
    """Number of further rows whose image looks alike."""
    images: tuple[str, ...]
    """SHA-256 (hex) of the images of the found rows, ascending."""
    alike_images: tuple[str, ...]
    """The same of those that look alike."""

    def __str__(self) -> str:
        are = "s hold" if self.same_bytes != 1 else " holds"
        look = "look" if self.alike != 1 else "looks"
        return f"{self.same_bytes:,} other row{are} the same bytes, {self.alike:,} {look} alike (perceptual hash)"


@dataclass(frozen=True)
class _Shard:
    """A shard of accepted rows that state their image."""

    folder_uri: str
    info: ShardInfo
    columns: tuple[str, ...]


def find_likeness(holdings: Holdings, bits: int = ALIKE_BITS) -> Likeness:
    """Return which other rows have the images of the found rows.

    Args:
        bits: number of bits in which two perceptual hashes may differ at most.
    """
    shards = list(_shards(holdings))
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda shard: _images(shard, holdings), shards))
        images = pa.array(sorted({image for part in found for image in part[0]}), pa.string())
        hashes = np.unique(np.array([value for part in found for value in part[1]], np.int64))
        hashes = hashes[np.bitwise_count(hashes.view(np.uint64)) >= _LEAST_BITS]
        if not len(images):
            return Likeness(same_bytes=0, alike=0, images=(), alike_images=())
        others = list(pool.map(lambda shard: _others(shard, holdings, images, hashes, bits), shards))
    same = {row for part in others for row, _, is_same in part if is_same}
    alike = {row: image for part in others for row, image, is_same in part if not is_same}
    return Likeness(
        same_bytes=len(same),
        alike=len(alike.keys() - same),
        images=tuple(images.to_pylist()),
        alike_images=tuple(sorted({image for row, image in alike.items() if row not in same})),
    )


def _shards(holdings: Holdings) -> Iterator[_Shard]:
    """Yield each shard once, however many versions share it."""
    known: set[tuple[str, str]] = set()
    for version in holdings.versions:
        columns = _columns(version)
        folder = files.join(version.folder_uri, "shards")
        for info in version.shards if columns else ():
            if info.rows and (folder, info.sha256) not in known:
                known.add((folder, info.sha256))
                yield _Shard(folder, info, columns)


def _columns(version: Version) -> tuple[str, ...]:
    names = version.schema_names
    if version.manifest.kind == "keys" or "image_sha256" not in names:
        return ()
    return tuple(name for name in ("image_sha256", "sample_id", *_HASHES) if name in names)


def _images(shard: _Shard, holdings: Holdings) -> tuple[list[str], list[int]]:
    """Return the images of the found rows of a shard, and their perceptual hashes."""
    rows = _found(shard, holdings)
    if not len(rows) or (shard.folder_uri, shard.info.sha256) in holdings.unreadable:
        return [], []
    table = read_columns(shard.folder_uri, shard.info, shard.columns).take(pa.array(rows))
    hashes = [table[name].drop_null().to_pylist() for name in _HASHES if name in table.column_names]
    return [image for image in table["image_sha256"].to_pylist() if image], [value for some in hashes for value in some]


def _others(
    shard: _Shard, holdings: Holdings, images: pa.Array, hashes: npt.NDArray[np.int64], bits: int
) -> list[tuple[object, str, bool]]:
    """Return identity, image and whether the bytes are the same, of the other rows of a shard with such an image."""
    if (shard.folder_uri, shard.info.sha256) in holdings.unreadable:
        return []
    table = read_columns(shard.folder_uri, shard.info, shard.columns)
    same = np.array(pc.is_in(table["image_sha256"], value_set=images).to_numpy())
    near = np.zeros(table.num_rows, bool)
    for name in _HASHES:
        if name in table.column_names and len(hashes):
            column = table[name]
            values = np.asarray(pc.fill_null(column, 0).to_numpy(), np.int64)
            for one in hashes:
                near |= np.bitwise_count((values ^ one).view(np.uint64)) <= bits
            near &= np.asarray(column.is_valid().to_numpy(), bool)
    chosen = same | near
    chosen[_found(shard, holdings)] = False
    places = np.flatnonzero(chosen)
    rows = table.take(pa.array(places))
    ids = rows["sample_id"].to_pylist() if "sample_id" in rows.column_names else [None] * len(places)
    return [
        (sample_id if sample_id is not None else (shard.info.sha256, place), image, bool(same[place]))
        for sample_id, place, image in zip(ids, places.tolist(), rows["image_sha256"].to_pylist(), strict=True)
    ]


def _found(shard: _Shard, holdings: Holdings) -> Rows:
    return holdings.rows.get((shard.folder_uri, shard.info.sha256), np.zeros(0, np.int64))
