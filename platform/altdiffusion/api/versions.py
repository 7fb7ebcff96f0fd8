"""A lake whose versions have readers for Arrow, DuckDB, Ray and PyTorch.

All of them verify what they read. `verify="shards"` compares the SHA-256 of each whole file with its name, as the jobs
do: a shard is read as a whole even where one column is wanted. `verify="pages"` reads only the wanted columns, and
compares the checksums that Parquet has of each page, as the trainer does: it finds damage, but not a file that was
replaced by another valid one.

Rows that were taken down are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from altdiffusion.refs import Ref
from altdiffusion.storage import dataset
from altdiffusion.storage.shard_rows import Verify, shard_rows

if TYPE_CHECKING:
    from altdiffusion.api.torch_rows import Rows

_BATCH_ROWS = 1024


class Lake(dataset.Lake):
    """A lake, by the folder or address that the jobs write to."""

    def version(self, ref: Ref | str) -> Version:
        """Return the version for `name` (the newest), `name@prefix`, `dataset:name@prefix` or a Ref.

        Raises:
            AltDiffusionError: there is no such dataset or version.
        """
        found = super().version(ref)
        return Version(found.folder_uri, found.manifest)


class Version(dataset.Version):
    """One immutable version of a dataset, with readers for other programs."""

    def to_arrow(
        self, columns: Sequence[str] | None = None, *, batch_rows: int = _BATCH_ROWS, verify: Verify = "shards"
    ) -> pa.RecordBatchReader:
        """Return a stream of the rows, in their order; memory holds one shard. `.read_all()` makes a table of it.

        Args:
            columns: names of the wanted columns; None for all.
            batch_rows: rows of a batch at most.

        Raises:
            AltDiffusionError: there is no such column; while rows are read: a shard is missing or damaged.
        """
        shards = shard_rows(self, columns, verify)
        batches = (batch for shard in shards for batch in shard.batches(batch_rows))
        return pa.RecordBatchReader.from_batches(self._schema_of(columns), batches)

    def to_duckdb(
        self, columns: Sequence[str] | None = None, *, connection: Any = None, verify: Verify = "shards"
    ) -> Any:
        """Return a `duckdb.DuckDBPyRelation` of the rows, which DuckDB reads from the shards when it is queried.

        DuckDB reads only the columns and row groups that a query needs. With `verify="shards"`, all files are read and
        compared with their names here, once, before the relation is returned; the checksums of pages are compared
        whenever they are read.

        Args:
            connection: a DuckDB connection; None for DuckDB's default one.

        Raises:
            AltDiffusionError: there is no such column, a shard is missing or damaged, DuckDB is not installed, or the
                version holds rows that were taken down, which this reader cannot leave out.
        """
        from altdiffusion.api.duckdb_rows import relation

        return relation(self, shard_rows(self, columns, verify), self._schema_of(columns), connection, verify)

    def to_ray(self, columns: Sequence[str] | None = None, *, verify: Verify = "shards") -> Any:
        """Return a `ray.data.Dataset` of the rows; the cluster's workers read the shards in parallel.

        Where this process is not connected to Ray, it joins RAY_ADDRESS, or starts Ray on this machine. Workers on
        other machines need the lake at the same address.

        Raises:
            AltDiffusionError: there is no such column, Ray cannot be reached, or `import ray` came first without
                `ray.init()`.
        """
        from altdiffusion.execution import cluster

        cluster.connect_caller()  # before the first import of Ray, which reads its settings then
        from altdiffusion.execution.ray_dataset import ray_dataset

        return ray_dataset(shard_rows(self, columns, verify), self._schema_of(columns))

    def to_torch(
        self,
        columns: Sequence[str] | None = None,
        *,
        transform: Callable[[Mapping[str, Any]], Any] | None = None,
        rank: int | None = None,
        ranks: int | None = None,
        verify: Verify = "shards",
    ) -> Rows:
        """Return a `torch.utils.data.IterableDataset` of the rows, as dicts, for a DataLoader with any `num_workers`.

        Ranks and workers divide the shards: each row comes exactly once over all of them. Ranks may therefore get
        different numbers of rows, which a loop with collective operations has to expect. Rows come in their order; a
        loop that needs another one shuffles them in a buffer. For training runs that can be repeated exactly, use
        `python -m jobs.train`.

        Args:
            transform: called with each row; its result is what the DataLoader gets.
            rank, ranks: number of this process and count of processes that divide the rows; by default those of
                `torch.distributed` where it is initialised, else 0 of 1.

        Raises:
            AltDiffusionError: there is no such column, or `rank` is not below `ranks`.
        """
        from altdiffusion.api.torch_rows import Rows

        return Rows(shard_rows(self, columns, verify), transform=transform, rank=rank, ranks=ranks)

    def _schema_of(self, columns: Sequence[str] | None) -> pa.Schema:
        return self._schema([columns] if isinstance(columns, str) else columns)
