"""Rows of a version for DuckDB, which reads the Parquet files itself, by Arrow's scanner."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow.fs import FSSpecHandler, PyFileSystem

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from altdiffusion.storage.cleansing import is_clean
from altdiffusion.storage.dataset import Version
from altdiffusion.storage.shard_rows import ShardRows, Verify
from altdiffusion.storage.shards import REMEDY
from altdiffusion.storage.verification import THREADS, shard_damage


def relation(version: Version, shards: Sequence[ShardRows], schema: pa.Schema, connection: Any, verify: Verify) -> Any:
    """Return a `duckdb.DuckDBPyRelation` of the rows, after a check of takedowns and, if asked for, of every file.

    Raises:
        AltDiffusionError: DuckDB is not installed, a shard is missing or damaged, or a row was taken down.
    """
    try:
        import duckdb
    except ImportError as error:
        raise AltDiffusionError("to_duckdb", "needs DuckDB, which is not installed", "pip install duckdb") from error
    if not is_clean(version):
        raise AltDiffusionError(
            version.ref.short,
            "holds rows that were taken down, which DuckDB would read",
            f"open the newest version ({version.manifest.name}), or use to_arrow(), which leaves them out",
        )
    if verify == "shards":
        _verify(shards)
    scanned = arrow_dataset(shards, schema)
    return duckdb.from_arrow(scanned) if connection is None else connection.from_arrow(scanned)


def arrow_dataset(shards: Sequence[ShardRows], schema: pa.Schema) -> ds.Dataset:
    """Return the shards as one dataset of Arrow, which verifies the checksums of the pages that it reads."""
    if not shards:
        return ds.dataset(schema.empty_table())
    options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    format = ds.ParquetFileFormat(default_fragment_scan_options=options)
    opened = [files.filesystem(shard.uri) for shard in shards]
    paths = [path for _, path in opened]
    return ds.dataset(paths, schema=schema, format=format, filesystem=PyFileSystem(FSSpecHandler(opened[0][0])))


def _verify(shards: Sequence[ShardRows]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        for damage in pool.map(shard_damage, [(shard.folder_uri, shard.info) for shard in shards]):
            if damage is not None:
                raise AltDiffusionError(f"shard {damage.uri}", f"is damaged: {damage.problem}", REMEDY)
