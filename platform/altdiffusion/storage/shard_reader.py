"""Reader of a shard's row groups that verifies every page, for repeated reads of one shard."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files, pages
from altdiffusion.storage.fetched import FetchedFile
from altdiffusion.storage.shards import REMEDY, damaged

_PIECE_BYTES = 1 << 20


@contextlib.contextmanager
def naming_shard(uri: str) -> Iterator[None]:
    """Turn errors of reading or decoding a shard into an error that names the shard and has a remedy."""
    try:
        yield
    except FileNotFoundError as error:
        raise AltDiffusionError(f"shard {uri}", "is missing", REMEDY) from error
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise damaged(uri, error) from error


class ShardReader:
    """An open shard, for use by one thread.

    Args:
        uri: the shard's URI.
        size_bytes: the size that its dataset records.

    Raises:
        FileNotFoundError: there is no such shard.
        OSError, ValueError, pa.ArrowException: it is damaged; `read` raises them too. See `naming_shard`.
    """

    def __init__(self, uri: str, size_bytes: int) -> None:
        if files.is_local(uri):  # Arrow's own file, in pieces, avoids Python and a second copy in memory
            if files.size_bytes(uri) != size_bytes:
                raise ValueError(f"it has {files.size_bytes(uri)} bytes instead of {size_bytes}")
            path = files.local_path(uri)
            self._file: BinaryIO | FetchedFile = open(path, "rb", buffering=0)  # noqa: SIM115
            source: Any = pa.OSFile(path)
            self._parquet = pq.ParquetFile(
                source, page_checksum_verification=True, buffer_size=_PIECE_BYTES, pre_buffer=False
            )
        else:
            source = self._file = FetchedFile(uri, size_bytes)
            self._parquet = pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False)
        self._source = source
        leaves = self._parquet.schema
        self._place = {leaves.column(place).path: place for place in range(len(leaves))}

    def read(
        self,
        group: int,
        columns: Sequence[str],
        *,
        equal: str | None = None,
        rows: npt.NDArray[np.int64] | None = None,
        kept: bool = False,
    ) -> pa.Table:
        """Return columns of a row group.

        Args:
            equal: one of the columns, whose values are byte strings of one length. Where the shard stores it in a form
                that `pages` reads, it is read that faster way and returned as fixed-size binary.
            rows: numbers of the wanted rows, ascending; None for all.
            kept: the values of `equal` may be in memory that this thread's next call with `kept` overwrites.
        """
        if isinstance(self._file, FetchedFile):
            self._file.fetch(self._ranges(group, columns))
        try:
            return self._read(group, columns, equal, rows, kept)
        finally:
            if isinstance(self._file, FetchedFile):
                self._file.forget()

    def _ranges(self, group: int, columns: Sequence[str]) -> list[tuple[int, int]]:
        """Return where the columns of a row group are in the file, by offset and size."""
        facts = self._parquet.metadata.row_group(group)
        chunks = [facts.column(place) for path, place in self._place.items() if path.partition(".")[0] in columns]
        starts = [min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset))) for chunk in chunks]
        return [(start, chunk.total_compressed_size) for start, chunk in zip(starts, chunks, strict=True)]

    def _read(
        self, group: int, columns: Sequence[str], equal: str | None, rows: npt.NDArray[np.int64] | None, kept: bool
    ) -> pa.Table:
        chunk = None if equal is None else self._parquet.metadata.row_group(group).column(self._place[equal])
        if chunk is not None and not pages.is_readable(chunk):
            chunk = None
        others = [name for name in columns if chunk is None or name != equal]
        table = self._parquet.read_row_group(group, columns=others, use_threads=False)
        if rows is not None:
            table = table.take(pa.array(rows))
        if chunk is not None:
            values = pages.read_equal(self._file, chunk, rows, kept=kept)
            kind = pa.binary(values.shape[1])
            array = pa.FixedSizeBinaryArray.from_buffers(kind, len(values), [None, pa.py_buffer(values)])
            table = table.append_column(equal, array)
        return table

    def close(self) -> None:
        self._file.close()
        self._source.close()
