"""Shards: content-addressed Parquet files with a fixed row-group size."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.records import TYPES, completed, present
from altdiffusion.storage import files
from altdiffusion.storage.arrow_errors import UNREADABLE
from altdiffusion.storage.documents import Document
from altdiffusion.storage.hashed_file import write_by_digest

ROW_GROUP_ROWS = 1024
NARROW_GROUP_ROWS = 65_536
"""The same for rows of a few hundred bytes, such as links: fewer, larger groups take less space and read faster."""
_REPEATING = (
    "unit_id", "language", "source_language", "source", "reason", "image_format", "hash_verdict", "color_profile",
    "sampler", "checkpoint",
)  # fmt: skip
"""Columns whose values repeat. For all others a dictionary costs time and space and is abandoned half-way."""
_DENSE = ("image", "latent")
"""Columns that hardly compress (a latent by 8 %). Compressed, they would take three times as long to read."""
_PAGE_BYTES = 1 << 20
"""Target size of a page; a reader of one column holds at least one page in memory."""


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """The identity of a shard: SHA-256 (hex) of the file, rows, bytes, rows per row group."""

    sha256: str
    rows: int
    bytes: int
    row_group_rows: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_document(cls, document: Document) -> ShardInfo:
        """Return the description of a shard in a file of a lake.

        Raises:
            AltDiffusionError: a value is not usable.
        """
        return cls(
            sha256=document.digest("sha256"),
            rows=document.count("rows"),
            bytes=document.count("bytes"),
            row_group_rows=document.count("row_group_rows"),
        )


def shard_uri(folder_uri: str, sha256: str) -> str:
    """Return the URI of a shard.

    Raises:
        AltDiffusionError: a symbolic link leads out of the folder.
    """
    return files.within(folder_uri, f"{sha256}.parquet")


def encode(table: pa.Table, row_group_rows: int = ROW_GROUP_ROWS) -> bytes:
    """Return the Parquet bytes of a table; equal tables give equal bytes under one pyarrow version."""
    sink = io.BytesIO()  # grows in place, where the buffers of Arrow are copied into ones of twice the size
    _encode(table, sink, row_group_rows)
    return sink.getvalue()  # the same memory


def _encode(table: pa.Table, sink: IO[bytes], row_group_rows: int) -> None:
    row_bytes = table.nbytes // max(table.num_rows, 1)
    pq.write_table(
        table.combine_chunks(),
        sink,
        row_group_size=row_group_rows,
        # A page ends only between batches: with images, a batch of 1024 rows would be one page of 200 MB.
        write_batch_size=min(max(_PAGE_BYTES // max(row_bytes, 1), 1), 1024),
        use_dictionary=[name for name in _REPEATING if name in table.column_names],
        compression={name: "none" if name in _DENSE else "zstd" for name in _leaves(table.schema)},
        write_page_checksum=True,
        data_page_version="2.0",
    )


def _leaves(schema: pa.Schema) -> list[str]:
    """Return the columns by their names in Parquet, in which the element of a list is a column."""
    return [f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name for field in schema]


def write_table(folder_uri: str, table: pa.Table, row_group_rows: int = ROW_GROUP_ROWS) -> ShardInfo:
    """Write a table as a shard named by its content; an existing shard of a folder is left unchanged."""
    if files.is_local(folder_uri):  # memory does not hold what is written: a shard of images has up to a gigabyte
        sha256, size = write_by_digest(
            files.local_path(folder_uri),
            lambda sink: _encode(table, sink, row_group_rows),
            lambda sha256: files.local_path(shard_uri(folder_uri, sha256)),
        )
        return ShardInfo(sha256=sha256, rows=table.num_rows, bytes=size, row_group_rows=row_group_rows)
    data = encode(table, row_group_rows)
    info = ShardInfo(sha256=files.sha256_hex(data), rows=table.num_rows, bytes=len(data), row_group_rows=row_group_rows)
    files.write_atomic(shard_uri(folder_uri, info.sha256), data)  # not asked for first: few shards are written twice
    return info


def read_table(folder_uri: str, sha256: str, schema: pa.Schema) -> pa.Table:
    """Return the columns of `schema` from a shard; nullable columns that an older shard does not have are null.

    Raises:
        AltDiffusionError: the shard is missing, its bytes have changed, or it has other columns.
    """
    uri = shard_uri(folder_uri, sha256)
    try:
        data = files.read_bytes(uri)
    except FileNotFoundError as error:
        raise AltDiffusionError(f"shard {uri}", "is missing", REMEDY) from error
    if files.sha256_hex(data) != sha256:
        raise AltDiffusionError(f"shard {uri}", "is damaged: its SHA-256 is not its name", REMEDY)
    try:
        source = pa.BufferReader(data)
        columns = present(schema.names, pq.read_schema(source).names)
        return completed(checked_types(pq.read_table(source, columns=columns), uri), schema)
    except (*UNREADABLE, KeyError) as error:  # its name matches its bytes, but it was never a shard
        raise damaged(uri, error) from error


def damaged(uri: str, error: BaseException) -> AltDiffusionError:
    """Return the error for a shard that Arrow cannot read."""
    return AltDiffusionError(f"shard {uri}", f"is damaged ({first_line(error)})", REMEDY)


def checked_types(table: pa.Table, uri: str) -> pa.Table:
    """Return the table of a shard after a check that its columns have the types of `records`.

    Raises:
        AltDiffusionError: a column has another type, so the shard was not written by this software.
    """
    for field in table.schema:
        if field.name in TYPES and field.type not in TYPES[field.name]:
            wanted = " or ".join(str(dtype) for dtype in TYPES[field.name])
            raise AltDiffusionError(
                f"shard {uri}", f"is damaged: its column {field.name} is {field.type}, not {wanted}", REMEDY
            )
    return table


REMEDY = (
    "run `altdiffusion dataset verify NAME@DIGEST --forget` for its version, then the job that made it again: "
    "it makes only what is missing"
)
