"""Export of rows without images for other tools: the columns of the kind, as plain Parquet files.

    00000.parquet, 00001.parquet, ...     rows in the order of the dataset

The files have our names and types of columns. The meaning of each is in the metadata of its field.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from altdiffusion.records import SCHEMAS
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Version
from altdiffusion.storage.tombstones import read_tombstones

SHARD_DIGITS = 5


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export has written."""

    rows: int
    shards: int
    taken_down: int
    """Rows that the version holds and that were left out, because they were taken down."""


def kept_tables(version: Version, gone: list[int]) -> Iterator[pa.Table]:
    """Yield the rows that were not taken down, shard by shard; the number of the others is added to `gone`."""
    tombstones = read_tombstones(version.lake_uri)
    for index in range(len(version.shards)):
        table = version.read_shard(index)
        listed = tombstones.names(table)
        gone.append(int(listed.sum()))
        yield table.filter(pa.array(~listed)) if listed.any() else table


def write_rows(version: Version, output: str, rows_per_shard: int) -> Exported:
    """Write the rows of a version into a folder, `rows_per_shard` to a file, the last one excepted.

    Memory holds one file of the export and one shard of the version. A version without rows makes one file without
    rows, so that its columns can be read.
    """
    gone: list[int] = []
    schema = SCHEMAS[version.manifest.kind]
    count = shards = 0
    for shards, table in enumerate(_cut(kept_tables(version, gone), schema, rows_per_shard), 1):
        body = pa.BufferOutputStream()
        pq.write_table(table, body, compression="zstd")
        name = f"{shards - 1:0{SHARD_DIGITS}d}.parquet"
        files.write_atomic(files.join(output, name), body.getvalue().to_pybytes())
        count += table.num_rows
    return Exported(rows=count, shards=shards, taken_down=sum(gone))


def _cut(tables: Iterable[pa.Table], schema: pa.Schema, size: int) -> Iterator[pa.Table]:
    """Yield the rows of tables in tables of `size` rows, the last one excepted; one without rows if there are none."""
    held, first = schema.empty_table(), True
    for table in tables:
        held = pa.concat_tables([held, table.select(schema.names).cast(schema)])
        while held.num_rows >= size:
            yield held.slice(0, size)
            held, first = held.slice(size), False
    if held.num_rows or first:
        yield held.combine_chunks()
