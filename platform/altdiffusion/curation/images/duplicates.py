"""Duplicates among downloaded images: equal bytes, and perceptual hashes that differ in few bits.

    images -> fingerprint -> keys -> compare -> drops -> distinct -> images (the next version)

`fingerprint` reads a few columns of whole shards and writes one row per key: the SHA-256 (band -1) and each band of the
perceptual hash (`near`), split by key into buckets, so that images that may be duplicates meet in a bucket.
`compare` decides one bucket and writes who is dropped. `distinct` rewrites the shards that lose rows; all others are
shared with the version before.

Which of two stays is decided by one total order, whatever the units and the order of input: the larger area as
downloaded, then the higher similarity (unknown is lowest), then the smaller sample_id. An image is dropped if and
only if one that comes before it in this order has the same bytes or is within the distance, in the same language if
so configured. That is a statement about pairs. Being near is not transitive: of three images in a row, each near the
next, the last may lose against one that is itself dropped. What stays is free of near pairs all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.curation.config import DistinctConfig
from altdiffusion.curation.images import near_hashes
from altdiffusion.curation.rejects import DUPLICATE_IMAGE, NEAR_DUPLICATE, rejected
from altdiffusion.execution.range_work import RangeWork, finish_unit
from altdiffusion.execution.ranges import new_unit
from altdiffusion.execution.units import Unit
from altdiffusion.hashing import hash64
from altdiffusion.records import DROPS, KEYS
from altdiffusion.splitmix import splitmix64
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Version
from altdiffusion.storage.ledger import UnitRecord, count
from altdiffusion.storage.shard_columns import read_columns
from altdiffusion.storage.shards import NARROW_GROUP_ROWS
from altdiffusion.tally import tally_images

EXACT = -1
"""Band of the SHA-256; the bands of the perceptual hash count from 0."""
REASONS = (DUPLICATE_IMAGE, NEAR_DUPLICATE)
_READ = ("sample_id", "language", "image_sha256", "phash", "original_width", "original_height", "similarity")
_THREADS = 16


def plan_fingerprint(images: Version, config: DistinctConfig) -> list[Unit]:
    """Return the units of whole, consecutive shards: as many as hold `rows_per_unit` rows, at least one."""
    units: list[Unit] = []
    first, rows = 0, 0
    for last, shard in enumerate(images.shards):
        rows += shard.rows
        if rows >= config.rows_per_unit or last == len(images.shards) - 1:
            digests = [info.sha256 for info in images.shards[first : last + 1]]
            payload = {"version": str(images.ref), "first": first, "last": last}
            # A key names its image by shard number, so the same shards in another place are other work.
            units.append(new_unit(len(units), [first, *digests], payload, digest_of=digests))
            first, rows = last + 1, 0
    return units


class FingerprintWork(RangeWork):
    """Writes the keys of some shards: `buckets` shards, empty ones included, in bucket order."""

    def __init__(self, *, lake: str, dataset: str, config: DistinctConfig) -> None:
        super().__init__(lake=lake, dataset=dataset)
        self.config = config

    def run(self, unit: Unit) -> UnitRecord:
        """Read columns of one shard after the other; no image is read."""
        version = self.version_of(unit)
        folder = files.join(version.folder_uri, "shards")
        keys, bucket = [], []
        for shard in range(int(unit.payload["first"]), int(unit.payload["last"]) + 1):
            rows = read_columns(folder, version.shards[shard], _READ)
            found = key_rows(rows, shard, self.config)
            keys.append(found[0])
            bucket.append(found[1])
        table, buckets = pa.concat_tables(keys), np.concatenate(bucket)
        order = np.argsort(buckets, kind="stable")
        edges = np.searchsorted(buckets[order], np.arange(self.config.buckets + 1))
        table = table.take(pa.array(order))
        return finish_unit(
            self.output,
            unit,
            rows_in=table.num_rows,
            accepted=[table.slice(low, high - low) for low, high in pairwise(edges)],
            keep_empty=True,
            row_group_rows=NARROW_GROUP_ROWS,
        )


def key_rows(rows: pa.Table, shard: int, config: DistinctConfig) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """Return the KEYS rows of a shard's images, one image after the other within a band, and the bucket of each.

    A key row carries the hash that its band needs: the SHA-256 in band -1 (and 0 as perceptual hash), the perceptual
    hash in the others (and an empty SHA-256).
    """
    cuts = near_hashes.bands(near_hashes.BITS, config.max_distance) if config.max_distance is not None else []
    hashes = rows["phash"].to_numpy().view(np.uint64)
    values = [hash64(rows["image_sha256"]), *(near_hashes.cut(hashes, band) for band in cuts)]
    scope = hash64(rows["language"]) if config.within == "language" else np.zeros(rows.num_rows, np.uint64)
    count, repeats = rows.num_rows, len(values)
    band = np.repeat(np.arange(EXACT, len(cuts), dtype=np.int8), count)
    key = splitmix64(np.concatenate(values) ^ np.tile(scope, repeats) ^ splitmix64(band.astype(np.uint64)))
    area = pc.multiply(rows["original_width"].cast(pa.int64()), rows["original_height"].cast(pa.int64()))
    again = pa.array(np.tile(np.arange(count), repeats))
    columns = {
        "shard": pa.array(np.full(len(band), shard, np.int32)),
        "row": pa.array(np.tile(np.arange(count, dtype=np.int32), repeats)),
        "sample_id": rows["sample_id"].take(again),
        "language": rows["language"].take(again),
        "image_sha256": pc.if_else(pa.array(band == EXACT), rows["image_sha256"].take(again), ""),
        "phash": pc.if_else(pa.array(band == EXACT), 0, rows["phash"].take(again)),
        "band": pa.array(band),
        "area": area.take(again),
        "similarity": rows["similarity"].take(again),
    }
    table = pa.table([columns[field.name] for field in KEYS], schema=KEYS)
    return table, (key % np.uint64(config.buckets)).astype(np.int64)


class CompareWork(RangeWork):
    """Decides one bucket. What it finds are its rows in: most keys belong to images that stay."""

    def __init__(self, *, lake: str, dataset: str, config: DistinctConfig) -> None:
        super().__init__(lake=lake, dataset=dataset)
        self.config = config

    def run(self, unit: Unit) -> UnitRecord:
        """Read the bucket's part of every fingerprint unit, and write the drops by shard and row."""
        version = self.version_of(unit)
        tables = [version.read_shard(shard) for shard in self.bucket_of(unit)]
        found = drops(pa.concat_tables([KEYS.empty_table(), *tables]), self.config)
        return finish_unit(
            self.output,
            unit,
            rows_in=found.num_rows,
            accepted=[found],
        )


def drops(keys: pa.Table, config: DistinctConfig) -> pa.Table:
    """Return the DROPS rows of the KEYS rows of one bucket: one per dropped image, by shard and row.

    `survivor` is the best image of equal bytes; else the best of the same perceptual hash; else, of the best
    images of each hash within the distance that beat it, the one with the smallest sample_id.
    """
    column = {name: keys[name].to_numpy() for name in ("shard", "row", "sample_id", "band", "area")}
    similarity = pc.fill_null(keys["similarity"], -np.inf).to_numpy()
    order = np.lexsort((column["row"], column["shard"], column["sample_id"], -similarity, -column["area"]))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    scope = _codes(keys["language"]) if config.within == "language" else np.zeros(keys.num_rows, np.uint64)
    lost: list[npt.NDArray[np.int64]] = [np.zeros(0, np.int64)]
    survivor: list[npt.NDArray[np.int64]] = [np.zeros(0, np.int64)]
    reason: list[int] = [0]

    def note(losers: npt.NDArray[np.int64], names: npt.NDArray[np.int64], why: int) -> None:
        lost.append(losers)
        survivor.append(names)
        reason.append(why)

    rows = np.flatnonzero(column["band"] == EXACT)
    losers, best = _worse(rows, scope[rows], _codes(keys["image_sha256"].take(pa.array(rows))), rank)
    note(losers, column["sample_id"][best], 0)
    hashes = keys["phash"].to_numpy().view(np.uint64)
    cuts = near_hashes.bands(near_hashes.BITS, config.max_distance) if config.max_distance is not None else []
    for number, band in enumerate(cuts):
        rows = np.flatnonzero(column["band"] == number)
        losers, best = _worse(rows, scope[rows], hashes[rows], rank)
        if number == 0:  # equal hashes share every band: they are noted once
            note(losers, column["sample_id"][best], 1)
        rows = np.setdiff1d(rows, losers, assume_unique=True)
        order, group = near_hashes.groups(scope[rows], near_hashes.cut(hashes[rows], band))
        rows = rows[order]
        beaten, by = near_hashes.beaten(
            group,
            near_hashes.outside(hashes[rows], band),
            near_hashes.BITS - band[1],
            rank[rows],
            column["sample_id"][rows],
            len(cuts) - 1,
        )
        note(rows[beaten], by[beaten], 1)
    at, names = np.concatenate(lost), np.concatenate(survivor)
    why = np.repeat(np.array(reason), [len(part) for part in lost])
    chosen = at[first := first_findings(column["shard"][at], column["row"][at], why, names)]
    columns = {name: keys[name].take(pa.array(chosen)) for name in ("shard", "row", "sample_id", "language")}
    columns["reason"] = pa.array(np.array(REASONS, object)[why[first]], pa.string())
    columns["survivor"] = pa.array(names[first])
    return pa.table([columns[field.name] for field in DROPS], schema=DROPS)


def _codes(texts: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """Return a number for each text, [N], equal for equal texts."""
    indices = texts.combine_chunks().dictionary_encode().indices
    return np.asarray(indices.to_numpy(zero_copy_only=False), np.uint64)


def _worse(
    rows: npt.NDArray[np.int64],
    scope: npt.NDArray[np.uint64],
    value: npt.NDArray[np.uint64],
    rank: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the rows that are not the best of those with their scope and value, and the best one for each of them."""
    order = np.lexsort((rank[rows], value, scope))
    same = np.zeros(len(rows), bool)
    same[1:] = (np.diff(value[order]) == 0) & (np.diff(scope[order]) == 0)
    best = np.maximum.accumulate(np.where(same, 0, np.arange(len(rows))))
    return rows[order[same]], rows[order[best[same]]]


def first_findings(
    shard: npt.NDArray[Any], row: npt.NDArray[Any], why: npt.NDArray[Any], survivor: npt.NDArray[Any]
) -> npt.NDArray[np.int64]:
    """Return, of all findings about one image, the one that counts: equal bytes first, then the smallest survivor.

    Equal bytes count first, then the smallest survivor.
    """
    order = np.lexsort((survivor, why, row, shard))
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(shard[order]) != 0) | (np.diff(row[order]) != 0)
    return np.asarray(order[new], np.int64)


def plan_distinct(images: Version, drops: Version) -> list[Unit]:
    """Return one unit per shard of the images version that the keys were made from."""
    units = []
    for index, shard in enumerate(images.shards):
        reads = (shard.sha256, drops.ref.digest)
        payload = {"version": str(images.ref), "drops": str(drops.ref), "shard": index}
        units.append(new_unit(index, reads, payload, digest_of=[index, *reads]))
    return units


def carried_rejects(images: Version) -> list[UnitRecord]:
    """Return the rejects of the version before, as one record to publish the next one with: its funnel stays whole."""
    by_reason = dict(images.manifest.rejects_by_reason)
    return [
        UnitRecord(
            unit_id="carried-rejects",
            index=len(images.shards),
            input_digest=images.ref.digest,
            rows_in=sum(by_reason.values()),
            rejects=images.rejects,
            rejects_by_reason=by_reason,
        )
    ]


class DistinctWork(RangeWork):
    """Leaves the dropped rows of one shard out; a shard without any is shared as it is.

    Costs one pass over the shard, and one ranged read of each drops shard, whose rows are sorted by shard.
    """

    def run(self, unit: Unit) -> UnitRecord:
        """Leave the dropped rows of one shard out."""
        version = self.version_of(unit)
        if version.manifest.name != self.dataset:
            raise ValueError(f"{version.ref.short} cannot share its shards with dataset {self.dataset}")
        shard = int(unit.payload["shard"])
        info = version.shards[shard]
        gone = self._dropped(str(unit.payload["drops"]), shard)
        if not gone.num_rows:
            names = ["language", *(("color_profile",) if version.manifest.tally else ())]
            known = read_columns(files.join(version.folder_uri, "shards"), info, names)
            return UnitRecord(
                unit_id=unit.id,
                index=unit.index,
                input_digest=str(unit.payload["input_digest"]),
                rows_in=info.rows,
                shards=(info,),
                rows_by_language=count(known["language"]),
                tally=tally_images(known),
            )
        table = version.read_shard(shard)
        rows = gone["row"].to_numpy()
        stays = np.ones(table.num_rows, bool)
        stays[rows] = False
        detail = pc.binary_join_element_wise("of sample", gone["survivor"].cast(pa.string()), " ")
        return finish_unit(
            self.output,
            unit,
            rows_in=table.num_rows,
            accepted=[table.filter(pa.array(stays))],
            rejects=[rejected(unit.id, table, rows, gone["reason"], detail=detail)],
            tally=tally_images,
        )

    def _dropped(self, ref: str, shard: int) -> pa.Table:
        """Return the DROPS rows of one shard, one per image, by row."""
        version = self.version(ref)
        folder = files.join(version.folder_uri, "shards")
        names = [field.name for field in DROPS]
        with ThreadPoolExecutor(_THREADS) as pool:
            parts: Sequence[pa.Table] = list(
                pool.map(lambda info: read_columns(folder, info, names, [("shard", "=", shard)]), version.shards)
            )
        found = pa.concat_tables([DROPS.empty_table(), *(part.cast(DROPS) for part in parts)])
        why = pc.index_in(found["reason"], pa.array(REASONS)).to_numpy()
        numbers = [found[name].to_numpy() for name in ("shard", "row", "survivor")]
        return found.take(pa.array(first_findings(numbers[0], numbers[1], why, numbers[2])))
