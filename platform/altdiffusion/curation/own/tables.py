"""Tables that hold images: Parquet and Arrow files, with Hugging Face's `Image` structs or plain binary columns.

img2dataset's `parquet` format is one of them. A Parquet file is cut into units at any row; an Arrow file (the file or
the stream format) is read batch by batch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from altdiffusion.curation.config import OwnConfig
from altdiffusion.curation.own.columns import check_columns, read_columns
from altdiffusion.curation.own.failed_rows import failure
from altdiffusion.curation.own.listing import Listing, SourceFile, check_identity, chunks, digests, opened
from altdiffusion.curation.own.sample import IMAGE_EXTENSIONS, Sample, field_captions, lower_keys, nfc
from altdiffusion.curation.own.table_rows import check_bounds, python_rows, wrong_text
from altdiffusion.curation.rejects import CAPTION_BYTES, NO_CAPTION, NO_IMAGE, TOO_LARGE, Refused
from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.execution.ranges import new_unit
from altdiffusion.execution.units import Unit
from altdiffusion.storage.arrow_errors import UNREADABLE

_TABLE = re.compile(r"(?i).*\.(parquet|arrow|feather|ipc)")
_USUAL = ("image", "img", "photo", *sorted(IMAGE_EXTENSIONS))
_BATCH = 64
"""Rows that are read at a time: with images of 32 MiB, 2 GiB at worst."""


def is_table(file: SourceFile) -> bool:
    """Return whether a file is a table, by its name."""
    return _TABLE.fullmatch(file.key) is not None


def image_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that can hold images, those of usual names first."""
    found = [field.name for field in schema if _holds_bytes(field.type)]
    return sorted(found, key=lambda name: (name.lower() not in _USUAL, schema.names.index(name)))


def _holds_bytes(dtype: pa.DataType) -> bool:
    if pa.types.is_struct(dtype):
        return any(one.name == "bytes" and _holds_bytes(one.type) for one in dtype)
    return bool(pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype) or pa.types.is_binary_view(dtype))


def table_schema(file: SourceFile) -> pa.Schema:
    """Return the columns of a table.

    Raises:
        AltDiffusionError: it cannot be read.
    """
    with _Table(file.uri, file.key) as table:
        return table.schema


def plan_tables(listing: Listing, config: OwnConfig) -> tuple[list[Unit], list[list[str]]]:
    """Return the units of all tables, and [name, identity] of each.

    Raises:
        AltDiffusionError: a table cannot be read, has no image, or no table has the columns that the config names.
    """
    tables = [file for file in listing.files if is_table(file)]
    units: list[Unit] = []
    reads = []
    names: set[str] = set()
    for file, digest in zip(tables, digests(tables), strict=True):
        with _Table(file.uri, file.key) as table:
            column = image_column(table.schema, config, file.uri)
            rows = table.rows()
            names |= {name.lower() for name in table.schema.names}
        for start, stop in chunks(rows, config.rows_per_unit):
            payload = {
                "name": file.key, "uri": file.uri, "digest": digest, "column": column, "start": start, "stop": stop,
            }  # fmt: skip
            units.append(new_unit(len(units), [file.key, digest, start, stop], payload, name=config.name))
        reads.append([file.key, digest])
    if tables:
        check_columns(config, names, f"source {config.uri}", has_captions=False)
    return units, reads


def image_column(schema: pa.Schema, config: OwnConfig, uri: str) -> str:
    """Return the column that holds the image.

    Raises:
        AltDiffusionError: there is none, or not the one that the config names.
    """
    found = image_columns(schema)
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)[:400]
    if config.image_column is not None:
        if config.image_column in found:
            return config.image_column
        problem = f"has no column {config.image_column!r} of bytes; it has {columns}"
        raise AltDiffusionError(f"source file {uri}", problem, "correct image_column")
    if not found:
        raise AltDiffusionError(
            f"source file {uri}",
            f"holds no images; it has {columns}",
            "give a table with a column of bytes or of {bytes, path}; a table of addresses is imported as links",
        )
    if len(found) > 1 and found[0].lower() not in _USUAL:
        raise AltDiffusionError(
            f"source file {uri}", f"has several columns of bytes: {', '.join(found)}", "name one in image_column"
        )
    return found[0]


class TableReader:
    """Reads row ranges of tables."""

    def __init__(self, config: OwnConfig) -> None:
        self._config = config

    def __call__(self, unit: Unit) -> Iterator[Sample]:
        """Yield the samples of a unit.

        Raises:
            AltDiffusionError: the table is damaged, gone, or another one since planning.
        """
        payload = unit.payload
        check_identity(str(payload["uri"]), str(payload["digest"]))
        number = int(payload["start"])
        with _Table(str(payload["uri"]), str(payload["name"])) as table:
            for batch in table.batches(number, int(payload["stop"])):
                for row in python_rows(batch):
                    yield table_sample(f"{payload['name']}/{number}", row, str(payload["column"]), self._config)
                    number += 1


def table_sample(name: str, row: dict[str, Any], column: str, config: OwnConfig) -> Sample:
    """Return the sample of a row whose image is in `column`: bytes, or `{bytes, path}`."""
    image = row.pop(column)
    body = image.get("bytes") if isinstance(image, dict) else image
    path = image.get("path") if isinstance(image, dict) else None
    fields = lower_keys({key: value for key, value in row.items() if not isinstance(value, bytes)})
    captions = field_captions(fields, config.captions, config.language_column, config.identify.languages)
    refused = failure(fields)
    wrong = wrong_text(row, read_columns(config))
    if refused is None and wrong is not None:
        refused = Refused(CAPTION_BYTES, wrong)
    elif refused is None and not body:
        refused = Refused(NO_IMAGE, f"only its path: {nfc(str(path))[:150]}" if path else "the cell is empty")
    elif refused is None and not captions:
        refused = Refused(NO_CAPTION)
    elif refused is None and body is not None and len(body) > config.store.max_bytes:
        refused = Refused(TOO_LARGE, f"{len(body)} bytes")
    return Sample(
        name=name, body=None if refused is not None else body, captions=captions, fields=fields, refused=refused
    )


class _Table:
    """An open Parquet or Arrow file."""

    def __init__(self, uri: str, name: str) -> None:
        self._uri, self._open = uri, opened(uri)
        self._is_parquet = name.lower().endswith(".parquet")

    def __enter__(self) -> _Table:
        file = self._open.__enter__()
        try:
            self._reader = pq.ParquetFile(file) if self._is_parquet else _arrow(file)
            self.schema: pa.Schema = self._reader.schema_arrow if self._is_parquet else self._reader.schema
        except UNREADABLE as error:
            self._open.__exit__(None, None, None)
            raise self._damaged(error) from error
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._open.__exit__(None, None, None)
        if isinstance(error, UNREADABLE):
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> AltDiffusionError:
        return AltDiffusionError(
            f"source file {self._uri}",
            f"is not a readable Parquet or Arrow file ({first_line(error)})",
            "fetch or write it again, or leave it out of the source",
        )

    def rows(self) -> int:
        """Return the number of rows."""
        if self._is_parquet:
            return int(self._reader.metadata.num_rows)
        return sum(batch.num_rows for batch in self._arrow_batches())

    def batches(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a range, some at a time."""
        first = 0
        for batch in self._parquet_batches(start, stop) if self._is_parquet else self._arrow_batches():
            if isinstance(batch, int):
                first = batch
                continue
            low, high = max(start - first, 0), min(stop - first, batch.num_rows)
            for at in range(low, high, _BATCH):
                yield batch.slice(at, min(_BATCH, high - at))
            first += batch.num_rows
            if first >= stop:
                return

    def _parquet_batches(self, start: int, stop: int) -> Iterator[pa.RecordBatch | int]:
        """Yield the first row of each row group that the range needs, then its batches."""
        first = 0
        for group in range(self._reader.num_row_groups):
            rows = int(self._reader.metadata.row_group(group).num_rows)
            if first < stop and first + rows > start:
                yield first
                yield from self._reader.iter_batches(batch_size=_BATCH, row_groups=[group], use_threads=False)
            first += rows

    def _arrow_batches(self) -> Iterator[pa.RecordBatch]:
        reader = self._reader
        if isinstance(reader, pa.ipc.RecordBatchFileReader):
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            batches = iter(reader)
        for batch in batches:
            check_bounds(batch)
            yield batch


def _arrow(file: Any) -> Any:
    """Open an Arrow file: the file format, or the stream format in which `datasets` keeps its tables."""
    if file.read(6) == b"ARROW1":
        file.seek(0)
        return pa.ipc.open_file(pa.PythonFile(file, mode="r"))
    file.seek(0)
    return pa.ipc.open_stream(pa.PythonFile(file, mode="r"))
