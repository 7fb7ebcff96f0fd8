"""Rows of a version as a Ray Dataset: the shards are read in parallel, where the cluster's workers are."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from altdiffusion.storage.shard_rows import ShardRows

_BATCH_ROWS = 1024


class _Shards(Datasource):  # type: ignore[misc]
    """A datasource with one read task per shard."""

    def __init__(self, shards: Sequence[ShardRows]) -> None:
        self._shards = shards

    def get_name(self) -> str:
        return "AltDiffusion"

    def estimate_inmemory_data_size(self) -> int:
        return sum(shard.info.bytes for shard in self._shards)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        return [
            ReadTask(
                functools.partial(_tables, shard),
                # A takedown may leave out rows, so that only the reading knows their number.
                BlockMetadata(num_rows=None, size_bytes=shard.info.bytes, input_files=(shard.uri,), exec_stats=None),
                schema=shard.schema,
                per_task_row_limit=per_task_row_limit,
            )
            for shard in self._shards
        ]


def _tables(shard: ShardRows) -> Iterator[pa.Table]:
    for batch in shard.batches(_BATCH_ROWS):
        yield pa.Table.from_batches([batch])


def ray_dataset(shards: Sequence[ShardRows], schema: pa.Schema) -> Any:
    """Return a `ray.data.Dataset` of the rows, in a process that is connected to Ray.

    Args:
        schema: of the rows, for a version without shards.
    """
    if not shards:
        return ray.data.from_arrow(schema.empty_table())
    return ray.data.read_datasource(_Shards(shards), override_num_blocks=len(shards))
