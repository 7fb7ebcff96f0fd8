"""Exact deduplication on row id and URL key across all parts of all sources.

candidates -> links is a hash exchange (`execution.ranges.plan_buckets`): every select unit wrote one shard per bucket,
so the unit of bucket b holds what names the rows of that bucket only, and decides alone. Rows that share a URL key
(`urls.url_key`) share a bucket. Rows that share LAION's hash share URL and text, hence the key and the bucket too;
where a source's hashes are wrong, they are compared within the bucket only.

Which of several rows stays is decided by the rows themselves, not by the order they were found in: the one of the
source that the config names first, then the one whose text is more similar to its image (nulls last), then the
smaller row id. Rows that are equal in all of these are copies; of them the first of the source's parts stays.
Rows come out in input order within the bucket, which also spreads every site over all download units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.curation.rejects import DUPLICATE_HASH, DUPLICATE_URL, coded, rejected
from altdiffusion.execution.range_work import RangeWork, finish_unit
from altdiffusion.execution.units import Unit
from altdiffusion.hashing import hash64
from altdiffusion.splitmix import Words
from altdiffusion.storage.dataset import Version
from altdiffusion.storage.ledger import UnitRecord
from altdiffusion.storage.shards import NARROW_GROUP_ROWS
from altdiffusion.tally import tally
from altdiffusion.urls import url_keys

SHARD_ROWS = 65536
REASONS = (DUPLICATE_HASH, DUPLICATE_URL)


class DedupWork(RangeWork):
    """The work on one bucket: what names its rows, then the links of those that may be copies, then all its rows.

    In memory are some 50 bytes per row of the bucket, and the rows of one shard.
    """

    def run(self, unit: Unit) -> UnitRecord:
        """Find the losers of the bucket and write the rest."""
        version, shards = self.version_of(unit), self.bucket_of(unit)
        verdict = _verdict(version, shards)
        rejects: list[pa.Table] = []
        return finish_unit(
            self.output,
            unit,
            rows_in=len(verdict),
            accepted=_regroup(_kept(version, shards, verdict, unit.id, rejects)),
            rejects=rejects,
            row_group_rows=NARROW_GROUP_ROWS,
            tally=tally,
        )


def _verdict(version: Version, shards: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Return 0 for each row of the bucket that stays, else 1 + the place of its reason in REASONS."""
    ids, hashes, similarity, source = _names(version, shards)
    verdict = np.zeros(len(ids), np.uint8)
    suspects = np.flatnonzero(_shared(ids) | _shared(hashes))
    if len(suspects):
        keys = _keys(version, shards, suspects)
        order = np.lexsort((keys, ids[suspects], -similarity[suspects], source[suspects]))
        verdict[suspects[order]] = duplicates(ids[suspects[order]], keys[order])
    return verdict


def duplicates(sample_id: npt.NDArray[np.int64], key: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Return the verdict of each row, [rows], the rows given best first.

    First those are dropped whose id a better row has, then, among the rest, those whose URL key a better one has.
    """
    verdict = np.zeros(len(sample_id), np.uint8)
    verdict[~_first(sample_id)] = 1
    left = np.flatnonzero(verdict == 0)
    verdict[left[~_first(key[left])]] = 2
    return verdict


def _names(
    version: Version, shards: Sequence[int]
) -> tuple[npt.NDArray[np.int64], Words, npt.NDArray[np.float32], npt.NDArray[np.int16]]:
    """Return id, hash of the URL key, similarity (NaN where null) and number of the source, in the config's order.

    Units come source by source in the config's order, and so do the rows: sources are numbered as they appear.
    """
    ids, hashes, similarity, source = [], [], [], []
    numbers: dict[str, int] = {}
    for index in shards:
        table = version.read_shard(index, ["sample_id", "url", "similarity", "source"])
        ids.append(table["sample_id"].to_numpy())
        hashes.append(hash64(url_keys(table["url"])))
        similarity.append(pc.fill_null(table["similarity"], np.nan).to_numpy())
        coded = table["source"].combine_chunks().dictionary_encode()
        places = [numbers.setdefault(name, len(numbers)) for name in coded.dictionary.to_pylist()]
        source.append(np.array(places, np.int16)[coded.indices.to_numpy()])
    return (
        np.concatenate([np.zeros(0, np.int64), *ids]),
        np.concatenate([np.zeros(0, np.uint64), *hashes]),
        np.concatenate([np.zeros(0, np.float32), *similarity]),
        np.concatenate([np.zeros(0, np.int16), *source]),
    )


def _keys(version: Version, shards: Sequence[int], rows: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
    """Return the rank of the URL key of each given row of the bucket: keys are compared, not their hashes."""
    parts = []
    start = 0
    for index in shards:
        stop = start + version.shards[index].rows
        mine = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)]
        if len(mine):
            parts.append(url_keys(version.read_shard(index, ["url"])["url"].take(pa.array(mine - start))))
        start = stop
    keys = pa.concat_arrays(parts)
    return np.asarray(pc.rank(keys, tiebreaker="dense"), np.int64)


def _shared(values: npt.NDArray[np.int64] | Words) -> npt.NDArray[np.bool_]:
    """Return whether each value occurs more than once."""
    order = np.argsort(values, kind="stable")
    same = np.diff(values[order]) == 0
    shared = np.zeros(len(values), bool)
    shared[order[1:][same]] = True
    shared[order[:-1][same]] = True
    return shared


def _first(values: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return whether each value occurs for the first time."""
    first = np.zeros(len(values), bool)
    first[np.unique(values, return_index=True)[1]] = True
    return first


def _kept(
    version: Version, shards: Sequence[int], verdict: npt.NDArray[np.uint8], unit: str, rejects: list[pa.Table]
) -> Iterator[pa.Table]:
    """Return the surviving rows shard by shard; the dropped ones are appended to `rejects`."""
    start = 0
    for index in shards:
        table = version.read_shard(index)
        codes = verdict[start : start + table.num_rows]
        lost = np.flatnonzero(codes)
        if len(lost):
            rejects.append(rejected(unit, table, lost, coded(REASONS, codes[lost]), first=start))
            table = table.filter(pa.array(codes == 0))
        start += len(codes)
        yield table


def _regroup(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Return the same rows in tables of SHARD_ROWS, the last one shorter."""
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
