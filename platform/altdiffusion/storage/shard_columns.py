"""Reading of a few columns of a shard: images are a thousand times as large as the columns that identify them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from altdiffusion.errors import AltDiffusionError
from altdiffusion.records import present
from altdiffusion.storage import files
from altdiffusion.storage.arrow_errors import UNREADABLE
from altdiffusion.storage.shards import REMEDY, ShardInfo, checked_types, damaged, shard_uri

_WHOLE_BYTES = 1 << 20


def read_columns(folder_uri: str, info: ShardInfo, columns: Sequence[str], filters: Any = None) -> pa.Table:
    """Return columns of a shard, read by ranges and verified by the checksums of their pages.

    Nullable columns that an older shard does not have are left out.

    Args:
        folder_uri: the dataset's `shards` or `rejects` folder.
        filters: as in pyarrow.parquet.read_table; row groups that their statistics exclude are not read.

    Raises:
        AltDiffusionError: the shard is missing or damaged, or lacks a column.
    """
    uri = shard_uri(folder_uri, info.sha256)
    try:
        with files.naming(uri, "reading"), open_shard(uri, info) as file:
            try:
                return checked_types(_read(file, columns, filters), uri)
            except UNREADABLE as error:
                if getattr(error, "errno", None) is not None:  # an error of the file system, not of the format
                    raise
                raise damaged(uri, error) from error
    except FileNotFoundError as error:
        raise AltDiffusionError(f"shard {uri}", "is missing", REMEDY) from error


def read_some_rows(folder_uri: str, info: ShardInfo, columns: Sequence[str], rows: npt.NDArray[np.int64]) -> pa.Table:
    """Return columns of some rows (numbers, ascending) of a shard, reading the row groups that hold them.

    Raises:
        AltDiffusionError: the shard is missing or damaged, lacks a column, or has fewer rows.
    """
    uri = shard_uri(folder_uri, info.sha256)
    try:
        with files.naming(uri, "reading"), open_shard(uri, info) as file:
            try:
                return checked_types(_groups(file, columns, rows), uri)
            except (*UNREADABLE, IndexError) as error:
                if getattr(error, "errno", None) is not None:  # an error of the file system, not of the format
                    raise
                raise damaged(uri, error) from error
    except FileNotFoundError as error:
        raise AltDiffusionError(f"shard {uri}", "is missing", REMEDY) from error


def _groups(file: Any, columns: Sequence[str], rows: npt.NDArray[np.int64]) -> pa.Table:
    opened = pq.ParquetFile(file, page_checksum_verification=True)
    sizes = [opened.metadata.row_group(number).num_rows for number in range(opened.num_row_groups)]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    if len(rows) and rows[-1] >= starts[-1]:
        raise IndexError(f"it has {starts[-1]} rows, and row {rows[-1]} is asked for")
    of_row = np.searchsorted(starts, rows, "right") - 1
    groups = np.unique(of_row)
    first = np.concatenate([[0], np.cumsum(np.asarray(sizes)[groups])])  # in the table of these groups
    places = first[np.searchsorted(groups, of_row)] + rows - starts[of_row]
    table = opened.read_row_groups(
        groups.tolist(), columns=present(columns, opened.schema_arrow.names), use_threads=False
    )
    return table.take(pa.array(places))


def open_shard(uri: str, info: ShardInfo) -> Any:
    """Return a file for reading; a small one of an object store is fetched whole, in one request instead of several."""
    fs, path = files.filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        return open(path, "rb")  # without fsspec's layers: a lake may have a hundred thousand small shards
    return io.BytesIO(files.read_bytes(uri)) if info.bytes <= _WHOLE_BYTES else fs.open(path, "rb")


def _read(file: Any, columns: Sequence[str], filters: Any) -> pa.Table:
    opened = pq.ParquetFile(file, page_checksum_verification=True)
    wanted = present(columns, opened.schema_arrow.names)
    if filters is None:
        return opened.read(
            columns=wanted, use_threads=opened.metadata.num_rows > 10_000
        )  # a quarter of `read_table`'s time
    file.seek(0)
    return pq.read_table(file, columns=wanted, filters=filters, page_checksum_verification=True)
