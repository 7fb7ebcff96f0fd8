"""Samples of a version's rows, for questions that its manifest does not answer.

A sample is whole row groups, evenly spread. The files are cut into as many equal stretches of row groups as are wanted,
and one group is taken from each. SHA-256 of the version's digest and the stretch decides which, so no period of the
version can hide from it, and the same version gives the same rows. Only the wanted columns of these groups are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from altdiffusion.errors import AltDiffusionError
from altdiffusion.splitmix import mix
from altdiffusion.storage import files, shards
from altdiffusion.storage.arrow_errors import UNREADABLE
from altdiffusion.storage.dataset import Version
from altdiffusion.storage.shard_columns import open_shard
from altdiffusion.storage.shards import ShardInfo

_OPEN_AT_ONCE = 8  # files whose columns are in flight: hides the latency of an object store


@dataclass(frozen=True, kw_only=True)
class Files:
    """Files of one version that are read as one table."""

    folder_uri: str
    infos: tuple[ShardInfo, ...]
    key: str
    """Decides what is drawn."""

    @property
    def rows(self) -> int:
        return sum(info.rows for info in self.infos)


@dataclass(frozen=True, order=True)
class Group:
    """A row group: the number of the file among `Files.infos`, and the number of the group in it."""

    file: int
    group: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Rows that were read, and out of how many."""

    table: pa.Table
    total: int

    @property
    def rows(self) -> int:
        return int(self.table.num_rows)

    @property
    def whole(self) -> bool:
        return self.rows == self.total

    @property
    def scale(self) -> float:
        """How many rows one row of the sample represents."""
        return self.total / self.rows if self.rows else 0.0

    @property
    def extent(self) -> str:
        """How much was read, as the beginning of a sentence."""
        return f"All {self.rows:,}" if self.whole else f"A sample of {self.rows:,} of {self.total:,}"


def accepted(version: Version) -> Files:
    """Return the shards of a version."""
    return Files(folder_uri=files.join(version.folder_uri, "shards"), infos=version.shards, key=version.ref.digest)


def rejected(version: Version) -> Files:
    """Return a version's files of rejects."""
    folder = files.join(version.folder_uri, "rejects")
    return Files(folder_uri=folder, infos=version.rejects, key=f"{version.ref.digest}:rejects")


def draw_groups(source: Files, rows: int) -> list[Group]:
    """Return row groups with about `rows` rows, in input order; all of them if there are not more."""
    counts = np.array([-(-info.rows // info.row_group_rows) for info in source.infos], np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)])
    groups, total = int(starts[-1]), source.rows
    if total <= rows or not groups:
        chosen = np.arange(groups)
    else:
        wanted = min(groups, -(-rows * groups // total))
        within = [_share(f"{source.key}:{stretch}") for stretch in range(wanted)]
        chosen = ((np.arange(wanted) + np.array(within)) * groups / wanted).astype(np.int64)
    file = np.searchsorted(starts, chosen, side="right") - 1
    return [Group(int(f), int(g - starts[f])) for f, g in zip(file, chosen, strict=True)]


def read_sample(source: Files, columns: Sequence[str], rows: int) -> Sample:
    """Read about `rows` rows of these columns; a column is null in files made before it existed.

    Raises:
        AltDiffusionError: a file is missing or damaged.
    """
    by_file = [
        (file, [group.group for group in groups])
        for file, groups in itertools.groupby(draw_groups(source, rows), key=lambda group: group.file)
    ]
    with ThreadPoolExecutor(_OPEN_AT_ONCE) as pool:
        tables = list(pool.map(lambda item: read_groups(source, item[0], item[1], columns), by_file))
    if not tables:
        return Sample(table=pa.table({name: pa.nulls(0) for name in columns}), total=source.rows)
    return Sample(table=pa.concat_tables(tables, promote_options="permissive"), total=source.rows)


def read_groups(source: Files, file: int, groups: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """Read columns of some row groups of one file; a column that the file does not have is null."""
    with open_file(source, file) as parquet:
        there = [name for name in columns if name in parquet.schema_arrow.names]
        table = parquet.read_row_groups(list(groups), columns=there, use_threads=False)
    for name in columns:
        if name not in there:
            table = table.append_column(name, pa.nulls(table.num_rows))
    return table.select(list(columns))


def iter_images(source: Files, group: Group, batch_rows: int = 64) -> Iterator[pa.Array]:
    """Yield the images of a row group, `batch_rows` at a time: one page of the file and one batch are in memory."""
    with open_file(source, group.file, buffer_size=1 << 20) as parquet:
        for batch in parquet.iter_batches(batch_rows, row_groups=[group.group], columns=["image"], use_threads=False):
            yield batch.column(0)


@contextlib.contextmanager
def open_file(source: Files, file: int, **options: Any) -> Iterator[pq.ParquetFile]:
    """Open a file for reading parts of it; the checksums of the pages that are read are checked.

    Raises:
        AltDiffusionError: it is missing or damaged.
    """
    info = source.infos[file]
    uri = shards.shard_uri(source.folder_uri, info.sha256)
    try:
        with open_shard(uri, info) as raw:
            with pq.ParquetFile(raw, page_checksum_verification=True, **options) as parquet:
                yield parquet
    except FileNotFoundError as error:
        raise AltDiffusionError(f"shard {uri}", "is missing", shards.REMEDY) from error
    except UNREADABLE as error:
        raise AltDiffusionError(f"shard {uri}", f"cannot be read ({error})", shards.REMEDY) from error


def keyed_order(key: str, ids: Any) -> npt.NDArray[np.uint64]:
    """Return [n] numbers that put 64-bit ids into an order which `key` decides.

    Formula: SplitMix64's finaliser of the id xor the first 64 bits of the key's SHA-256.
    """
    seed = np.uint64(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little"))
    return mix(np.asarray(ids, np.int64).view(np.uint64) ^ seed)


def _share(key: str) -> float:
    """Return a number in [0, 1) that the key decides."""
    return (int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 11) / (1 << 53)
