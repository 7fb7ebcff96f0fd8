"""Rows of a source's part, a few columns at a time; nothing is read that was not asked for.

A worker keeps the footers of the parts it works on, and checks that they are the ones that were planned.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from altdiffusion.curation.config import SourceConfig
from altdiffusion.curation.links.filters import Bounds
from altdiffusion.curation.links.partitions import Partition, constant, with_partition
from altdiffusion.curation.links.row_groups import RowGroup, Rows, overlapping
from altdiffusion.curation.links.source_columns import SCORES, SIZES, resolve_columns
from altdiffusion.curation.links.text_parts import indexed, is_text
from altdiffusion.curation.links.text_unit import TextUnitReader
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from altdiffusion.storage.arrow_errors import UNREADABLE
from altdiffusion.storage.native_aborts import abort_means

BATCH_ROWS = 65536
"""Rows held at a time as Arrow tables with their texts."""
_MAX_FOOTER = 1 << 30
_TAIL = 1 << 16
_AGAIN = "fetch this part again, or leave it out of the glob"


@dataclass(frozen=True, kw_only=True)
class Footer:
    """A part's own description of itself."""

    digest: str
    """SHA-256 of size and footer bytes (row counts, offsets, statistics): the identity without reading the rows."""
    metadata: Any
    schema: pa.Schema
    size: int
    """Bytes of the whole file."""
    places: Mapping[str, int]
    """Column -> its number among a row group's columns."""
    group_rows: npt.NDArray[np.int64]
    """Rows of each row group."""


def fetch_footer(file: Any, uri: str) -> tuple[int, bytes]:
    """Return the size of an open file, and its footer (to the end of the file); nothing else is read.

    Raises:
        AltDiffusionError: it is not a Parquet file, or truncated.
    """
    size = file.seek(0, 2)
    if size < 12:
        raise AltDiffusionError(f"source part {uri}", f"is not a Parquet file ({size} bytes)", _AGAIN)
    file.seek(max(size - _TAIL, 0))
    tail = file.read()
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] != b"PAR1" or not 8 < length <= min(size - 4, _MAX_FOOTER):
        raise AltDiffusionError(f"source part {uri}", "is truncated or not a Parquet file (no footer)", _AGAIN)
    if length > len(tail):
        file.seek(size - length)
        tail = file.read(length)
    return size, tail[-length:]


def parse_footer(size: int, body: bytes, uri: str) -> Footer:
    """Return what a footer states.

    Raises:
        AltDiffusionError: it is damaged.
    """
    try:
        parquet = pq.ParquetFile(pa.BufferReader(body))  # whose end is all that a reader of metadata looks at
        metadata, schema = parquet.metadata, parquet.schema_arrow
        groups = metadata.num_row_groups
        # Not by `metadata.schema`, which refers back to its owner: hundreds of megabytes would wait for the collector.
        # Nor by a row group's `column`, which ends the process where the footer of a damaged file contradicts itself.
        columns = [".".join(parts) for parts in parquet.reader.column_paths] if groups else []
    except UNREADABLE as error:
        raise AltDiffusionError(f"source part {uri}", f"has a damaged footer ({line(error)})", _AGAIN) from error
    return Footer(
        digest=files.sha256_hex(size.to_bytes(8, "little") + body[:-8]),
        metadata=metadata,
        schema=schema,
        size=size,
        places={column: place for place, column in enumerate(columns)},
        group_rows=np.fromiter((metadata.row_group(i).num_rows for i in range(groups)), np.int64, groups),
    )


def contradictory(uri: str) -> AltDiffusionError:
    """Return the error of a part whose footer pyarrow cannot even refuse: it ends the process."""
    return AltDiffusionError(
        f"source part {uri}", "has a footer that contradicts itself (the line above is pyarrow's)", _AGAIN
    )


@functools.lru_cache(maxsize=8)
def _footer(uri: str, digest: str) -> Footer:
    fs, path = files.filesystem(uri)
    with fs.open(path, "rb") as file:
        footer = parse_footer(*fetch_footer(file, uri), uri)
    if footer.digest != digest:
        raise _changed(uri)
    return footer


def _changed(uri: str) -> AltDiffusionError:
    return AltDiffusionError(f"source part {uri}", "changed since planning", "run the job again")


_NUMBERS = ("INT32", "INT64", "FLOAT", "DOUBLE")
"""Physical types whose bounds are numbers. Those of text may not be UTF-8, which is an error where they are read."""


class UnitReader:
    """Rows `start` to `stop` of a part, open for reading."""

    def __init__(
        self,
        uri: str,
        file: Any,
        footer: Footer,
        config: SourceConfig,
        start: int,
        stop: int,
        partition: Partition | None = None,
    ) -> None:
        self.uri, self.rows = uri, stop - start
        self._partition = partition or {}
        self._footer = footer
        self._parquet = pq.ParquetFile(file, metadata=footer.metadata)
        self.columns = resolve_columns(with_partition(footer.schema, self._partition), config, uri)
        self.groups = overlapping(footer.group_rows, start, stop)

    def bounds(self, group: RowGroup) -> dict[str, Bounds]:
        """Return what the footer states about a row group's numbers, under our names."""
        with abort_means(contradictory(self.uri)):
            return self._bounds(group)

    def _bounds(self, group: RowGroup) -> dict[str, Bounds]:
        metadata = self._footer.metadata.row_group(group.number)
        known = {}
        for name in (*SIZES, *SCORES):
            if self.columns.get(name) not in self._footer.places:
                continue
            chunk = metadata.column(self._footer.places[self.columns[name]])
            statistics = chunk.statistics
            if statistics is None:
                continue
            if statistics.has_null_count and statistics.null_count == chunk.num_values:
                known[name] = Bounds(low=None, high=None)
            elif (
                statistics.has_min_max and chunk.physical_type in _NUMBERS and isinstance(statistics.min, (int, float))
            ):
                known[name] = Bounds(low=float(statistics.min), high=float(statistics.max))
        return known

    def batches(self, groups: Sequence[RowGroup], names: Sequence[str]) -> Iterator[tuple[Rows, dict[str, Any]]]:
        """Return the rows of these row groups that belong to the unit, in order, at most BATCH_ROWS at a time.

        Yields:
            [N] the numbers of the rows within the unit, and the columns of `names` that the part has, as it has them.

        Raises:
            AltDiffusionError: the part is gone or damaged.
        """
        wanted = {name: self.columns[name] for name in names if name in self.columns}
        fixed = {name: wanted.pop(name) for name in list(wanted) if wanted[name] in self._partition}
        if not groups:
            return
        rows = np.concatenate([np.arange(group.first, group.first + group.rows) for group in groups])
        low, high = np.searchsorted(rows, [0, self.rows])
        if not wanted:
            yield rows[low:high], self._constants(fixed, int(high - low))
            return
        at = 0
        for batch in self._read([group.number for group in groups], list(wanted.values())):
            begin, end = max(low - at, 0), min(high - at, batch.num_rows)
            if begin < end:
                columns = {name: batch[column].slice(begin, end - begin) for name, column in wanted.items()}
                given = {name: pa.chunked_array([one]) for name, one in columns.items()}
                yield rows[at + begin : at + end], {**given, **self._constants(fixed, end - begin)}
            at += batch.num_rows
            if at >= high:
                return

    def _constants(self, fixed: Mapping[str, str], rows: int) -> dict[str, Any]:
        """Return columns whose value is in the name of the part's folder."""
        return {name: constant(self._partition[column], name, rows) for name, column in fixed.items()}

    def _read(self, numbers: list[int], columns: list[str]) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._parquet.iter_batches(
                batch_size=BATCH_ROWS, row_groups=numbers, columns=columns, use_threads=False
            )
        except UNREADABLE as error:
            raise AltDiffusionError(f"source part {self.uri}", f"cannot be read ({line(error)})", _AGAIN) from error


@contextlib.contextmanager
def open_unit(
    uri: str, digest: str, start: int, stop: int, config: SourceConfig, partition: Partition | None = None
) -> Iterator[UnitReader | TextUnitReader]:
    """Open rows `start` to `stop` of a part whose footer (of a text part: whose text) has this digest.

    Args:
        partition: the columns that the names of its folders state.

    Raises:
        AltDiffusionError: the part is gone, or not the one that was planned.
    """
    if is_text(uri):
        yield TextUnitReader(uri, indexed(uri, digest), config, start, stop)
        return
    fs, path = files.filesystem(uri)
    try:
        footer = _footer(uri, digest)
        # From an object store exactly what is asked for is fetched, nothing ahead of it.
        file = fs.open(path, "rb") if files.is_local(uri) else fs.open(path, "rb", cache_type="none")
    except OSError as error:
        raise AltDiffusionError(f"source part {uri}", f"cannot be read ({line(error)})", _AGAIN) from error
    with file:
        if file.seek(0, 2) != footer.size:  # another file since its footer was read
            raise _changed(uri)
        yield UnitReader(uri, file, footer, config, start, stop, partition)


def line(error: Exception) -> str:
    """Return an error's text on one line."""
    return " ".join(str(error).split())
