"""Exact deduplication on row id and URL across all parts of all sources.

candidates -> links is a hash exchange: every select unit wrote one shard a bucket (`split_by_bucket`), so the unit of
bucket b reads shard b of every select unit and nothing else, holds the keys of that bucket only, and decides alone:
rows that share a URL share a bucket, and rows that share LAION's hash share URL and text, hence the bucket too.
The survivor is the first in input order (source part, then row). Rows come out in input order within the bucket,
which also spreads every site over all download units.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from altdiffusion.curation.outcome import finish_unit, rejects_table
from altdiffusion.curation.tally import tally
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.ranges import open_version, unit_id
from altdiffusion.records import LINKS
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.ledger import Unit, UnitRecord, total

SHARD_ROWS = 65536


def plan_dedup(candidates: Version, buckets: int) -> list[Unit]:
    """One unit a bucket.

    Raises:
        AltDiffusionError: the version was not written with this number of buckets.
    """
    if len(candidates.shards) % buckets:
        raise AltDiffusionError(
            f"dataset {candidates.ref.short}",
            f"has {len(candidates.shards)} shards, which are not {buckets} buckets a unit",
            "give the number of buckets that select wrote it with",
        )
    units = []
    for bucket in range(buckets):
        digests = [shard.sha256 for shard in candidates.shards[bucket::buckets]]
        payload = {
            "version": str(candidates.ref),
            "bucket": bucket,
            "buckets": buckets,
            "input_digest": files.sha256_hex(files.canonical_json(digests)),
        }
        units.append(Unit(id=unit_id(bucket, *digests), index=bucket, payload=payload))
    return units


class DedupWork:
    """Works one bucket: one pass over its keys, one over its rows."""

    def __init__(self, *, lake: str, dataset: str) -> None:
        self.lake, self.dataset = lake, dataset
        self._versions: dict[str, Version] = {}

    def setup(self) -> None:
        """Nothing to load."""

    def run(self, unit: Unit) -> UnitRecord:
        """Finds the losers of the bucket and writes the rest."""
        version = open_version(self.lake, unit, self._versions)
        shards = [
            index
            for index in range(int(unit.payload["bucket"]), len(version.shards), int(unit.payload["buckets"]))
            if version.shards[index].rows
        ]
        keys = _concat([version.read_shard(index, ["sample_id", "url"]) for index in shards], ["sample_id", "url"])
        reason = duplicates(keys["sample_id"], keys["url"])
        dropped = np.flatnonzero(reason != "")
        languages: list[Any] = []
        dataset = Lake(self.lake).dataset(self.dataset)
        accepted = list(_regroup(_kept(version, shards, reason, languages)))
        rejects = rejects_table(
            unit.id,
            row=dropped,
            reason=reason[dropped],
            sample_id=keys["sample_id"].take(pa.array(dropped)),
            url=keys["url"].take(pa.array(dropped)),
            language=pa.chunked_array(languages, pa.string()),
        )
        return finish_unit(
            dataset,
            unit,
            rows_in=keys.num_rows,
            accepted=accepted,
            rejects=rejects,
            tally=total(tally(table) for table in accepted),
        )


def duplicates(sample_id: pa.ChunkedArray, url: pa.ChunkedArray) -> npt.NDArray[np.object_]:
    """[rows] `duplicate_hash`, `duplicate_url` or "" for each row, in input order.

    First rows whose id came before are dropped, then, among the rest, rows whose URL came before.
    """
    reason = np.full(len(sample_id), "", object)
    if not len(sample_id):
        return reason
    reason[~_first(sample_id.to_numpy())] = "duplicate_hash"
    left = np.flatnonzero(reason == "")
    encoded = url.take(pa.array(left)).combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    reason[left[~_first(encoded)]] = "duplicate_url"
    return reason


def _first(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether each value occurs for the first time."""
    first = np.zeros(len(values), bool)
    first[np.unique(values, return_index=True)[1]] = True
    return first


def _kept(
    version: Version, shards: list[int], reason: npt.NDArray[np.object_], languages: list[Any]
) -> Iterator[pa.Table]:
    """The surviving rows shard by shard; the languages of the dropped ones are appended to `languages`."""
    start = 0
    for index in shards:
        table = version.read_shard(index)
        stay = pa.array(reason[start : start + table.num_rows] == "")
        languages.extend(table["language"].filter(pa.compute.invert(stay)).chunks)
        start += table.num_rows
        yield table.filter(stay)


def _regroup(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of SHARD_ROWS, the last one shorter."""
    held: list[pa.Table] = []
    rows = 0
    for table in tables:
        held.append(table)
        rows += table.num_rows
        while rows >= SHARD_ROWS:
            whole = pa.concat_tables(held)
            yield whole.slice(0, SHARD_ROWS)
            held, rows = [whole.slice(SHARD_ROWS)], rows - SHARD_ROWS
    if rows:
        yield pa.concat_tables(held)


def _concat(tables: list[pa.Table], columns: list[str]) -> pa.Table:
    return pa.concat_tables(tables) if tables else LINKS.empty_table().select(columns)
