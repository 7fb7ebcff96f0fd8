"""Reader of a column of byte strings of one length, from a Parquet file's pages into one array.

Training mostly reads such columns (a latent of 512 pixels is 32 KiB). Arrow's general reader copies each value several
times and computes checksums without the processor's instructions for it. Here a value is read from the file and copied
once, and every page's CRC-32 is verified. The reader supports what `shards.encode` writes for these columns:
uncompressed, PLAIN, data pages of version 2, no nulls. Formats: parquet.thrift of apache/parquet-format (PageHeader),
Encodings.md (PLAIN), and Thrift's compact protocol.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from altdiffusion.storage.fetched import FetchedFile

U8 = npt.NDArray[np.uint8]

_DATA_PAGE_V2, _PLAIN = 3, 0
_LENGTH_BYTES = 4
"""Size of the length, little-endian, that PLAIN puts before each byte string."""
_HEADER_BYTES = 256
"""Enough for a page header; a longer one is read again."""
_threads = threading.local()


def is_readable(chunk: Any) -> bool:
    """Return whether `read_equal` may be able to read a column chunk (pyarrow's ColumnChunkMetaData)."""
    return (
        chunk.physical_type == "BYTE_ARRAY"
        and chunk.compression == "UNCOMPRESSED"
        and not chunk.has_dictionary_page
        and chunk.total_compressed_size > 0
    )


def read_equal(
    file: BinaryIO | FetchedFile, chunk: Any, rows: npt.NDArray[np.int64] | None = None, *, kept: bool = False
) -> U8:
    """Return the values of a column chunk, uint8 [R, L], or of some of its rows (ascending), uint8 [K, L].

    Pages that hold none of these rows are neither read nor verified.

    Args:
        kept: return memory that this thread's next call with `kept` overwrites: new memory costs almost as much as
            what is read into it.

    Raises:
        ValueError: the pages are damaged or of another form, or hold a null or values of different lengths.
    """
    out: U8 | None = None
    first = filled = 0
    for page in _pages(_reader_of(file, chunk.data_page_offset, chunk.total_compressed_size)):
        here: slice | npt.NDArray[np.int64] = slice(None)
        if rows is not None:
            low, high = np.searchsorted(rows, (first, first + page.rows)).tolist()
            here = rows[low:high] - first
        first += page.rows
        if rows is not None and low == high and (len(rows) or out is not None):
            continue  # without any rows, the length of the values comes from the first page
        values = _values(page, chunk.path_in_schema)[here]
        length = values.shape[1] - _LENGTH_BYTES
        if out is None:
            shape = (chunk.num_values if rows is None else len(rows), length)
            out = _scratch("values", math.prod(shape)).reshape(shape) if kept else np.empty(shape, np.uint8)
        if out.shape[1] != length:
            raise ValueError(f"column {chunk.path_in_schema} does not hold {out.shape[1]} items in every row")
        if filled + len(values) > len(out):
            raise ValueError(f"its pages hold more than {chunk.num_values} rows")
        out[filled : filled + len(values)] = values[:, _LENGTH_BYTES:]
        filled += len(values)
    if out is None or first != chunk.num_values:
        raise ValueError(f"its pages hold {first} of {chunk.num_values} rows")
    return out


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """The bytes of a column chunk; an array that `at` returns is valid until the next call."""

    size: int
    at: Callable[[int, int], U8]
    """Returns the bytes for an offset and a size within the chunk."""


@dataclass(frozen=True, kw_only=True)
class _Page:
    rows: int
    values: Callable[[], U8]
    """Reads, verifies and returns the PLAIN bytes after the levels."""


def _values(page: _Page, column: str) -> U8:
    """Return uint8 [R, 4 + L], each value after its length."""
    if page.rows == 0:
        raise ValueError("it has a page without rows")
    body = page.values()
    length = int(body[:_LENGTH_BYTES].view("<u4")[0]) if len(body) >= _LENGTH_BYTES else -1
    if len(body) != page.rows * (_LENGTH_BYTES + length):
        raise ValueError(f"column {column} does not hold {length} items in every row")
    values = body.reshape(page.rows, _LENGTH_BYTES + length)
    if (np.ascontiguousarray(values[:, :_LENGTH_BYTES]).view("<u4") != length).any():
        raise ValueError(f"column {column} does not hold {length} items in every row")
    return values


def _reader_of(file: BinaryIO | FetchedFile, start: int, size: int) -> _Reader:
    """Return the reader of a column chunk: page by page, so that a page is still in the processor's cache when it is
    verified and copied. Pages of a remote file that were fetched are taken as they are."""
    if isinstance(file, FetchedFile):
        return _Reader(size=size, at=lambda at, count: file.bytes_at(start + at, count))
    return _Reader(size=size, at=lambda at, count: _bytes_of(file, start + at, count))


def _bytes_of(file: BinaryIO, start: int, size: int) -> U8:
    """Return bytes of a file, in memory that this thread's next call overwrites."""
    scratch = _scratch("page", size)
    view, have = scratch.data, 0
    file.seek(start)
    while have < size:
        read = file.readinto(view[have:])  # type: ignore[attr-defined]
        if not read:
            raise ValueError(f"it ends {size - have} bytes early")
        have += read
    return scratch


def _scratch(name: str, size: int) -> U8:
    """Return this thread's memory of that name."""
    found: U8 | None = getattr(_threads, name, None)
    if found is None or len(found) < size:
        found = np.empty(size, np.uint8)
        setattr(_threads, name, found)
    return found[:size]


def _pages(chunk: _Reader) -> Iterator[_Page]:
    """Yield the pages of a chunk."""
    at = 0
    while at < chunk.size:
        header, at = _header(chunk, at)
        try:
            kind, size, body = header[1], header[3], header[8]
            levels = body[5] + body[6]
            encoding, rows, nulls = body[4], body[3], body[2]
        except (KeyError, TypeError):
            raise ValueError("it has a page header that cannot be read") from None
        if kind != _DATA_PAGE_V2 or encoding != _PLAIN or size != header[2]:
            raise ValueError(f"it has a page of type {kind} in encoding {encoding}")
        if not 0 <= levels <= size <= chunk.size - at:
            raise ValueError("it has a page that is larger than its column")
        if nulls:
            raise ValueError("it holds nulls")
        yield _Page(rows=rows, values=functools.partial(_verified, chunk, at, size, levels, header.get(4, -1)))
        at += size


def _verified(chunk: _Reader, at: int, size: int, levels: int, checksum: int) -> U8:
    """Return a page's bytes after its levels, the whole page's checksum verified."""
    page = chunk.at(at, size)
    if isal_zlib.crc32(page.data) != checksum & 0xFFFFFFFF:
        raise ValueError("it has a page whose checksum is not that of its bytes")
    return page[levels:]


def _header(chunk: _Reader, at: int) -> tuple[dict[int, Any], int]:
    """Return the page header at an offset, and the offset of its end; a header does not state its own length."""
    left = chunk.size - at
    for size in (min(_HEADER_BYTES, left), left):
        with contextlib.suppress(IndexError, TypeError, RecursionError):
            header, end = _struct(chunk.at(at, size).data, 0)
            return header, at + end
    raise ValueError("it has a page header that cannot be read")


def _struct(view: memoryview, at: int) -> tuple[dict[int, Any], int]:
    """Return the fields by id of a struct in Thrift's compact protocol, and its end; lists and maps are unsupported."""
    fields: dict[int, Any] = {}
    field = 0
    while view[at]:
        step, kind = view[at] >> 4, view[at] & 15
        at += 1
        if step:
            field += step
        else:
            field, at = _integer(view, at)
        if kind in (1, 2):
            fields[field] = kind == 1
        elif kind in (4, 5, 6):
            fields[field], at = _integer(view, at)
        elif kind == 8:
            length, at = _varint(view, at)
            fields[field] = bytes(view[at : at + length])
            at += length
        elif kind == 12:
            fields[field], at = _struct(view, at)
        else:
            raise TypeError(kind)
    return fields, at + 1


def _integer(view: memoryview, at: int) -> tuple[int, int]:
    """Return a signed integer (zigzag) and its end."""
    number, at = _varint(view, at)
    return (number >> 1) ^ -(number & 1), at


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = view[at]
        at += 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number, at
