"""Images and arrays in and out of Arrow's binary columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


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
