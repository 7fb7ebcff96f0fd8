"""Images and arrays in and out of Arrow's binary columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


def bodies_of(column: pa.ChunkedArray) -> Iterator[bytes]:
    """Yield the rows of a binary column."""
    for chunk in column.chunks:
        for value in chunk:
            yield value.as_py()


def binary_rows(values: npt.NDArray[Any]) -> pa.Array:
    """Return an array's n rows as a binary column of n values: each row's bytes, in C order, little-endian."""
    data = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    width = data.nbytes // len(data) if len(data) else 0
    offsets = np.arange(len(data) + 1, dtype=np.int32) * width
    return pa.BinaryArray.from_buffers(
        pa.binary(), len(data), [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(data.tobytes())]
    )


def rows_of_binary(column: pa.ChunkedArray, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return a binary column of n rows of the same length as an array [n, values per row], without copying each row.

    Raises:
        ValueError: a row is null, or has another length than the first one.
    """
    values = column.combine_chunks()
    lengths = set(pc.binary_length(values).to_pylist())
    if None in lengths or len(lengths) > 1:
        raise ValueError(f"rows of {sorted(lengths, key=str)} bytes are not one array")
    size = np.dtype(dtype).newbyteorder("<")
    if not len(values):
        return np.empty((0, 0), size)
    offsets = np.frombuffer(values.buffers()[1], np.int32)[values.offset :]
    data = values.buffers()[2][int(offsets[0]) : int(offsets[len(values)])] if lengths != {0} else b""
    return np.frombuffer(data, size).reshape(len(values), -1)
