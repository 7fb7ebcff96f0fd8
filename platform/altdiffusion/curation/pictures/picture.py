"""Stored pictures in and out of Arrow: bytes to RGB, arrays to binary columns."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

if TYPE_CHECKING:
    from PIL.Image import Image


_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of an object, in a message: it would make each run's rejects another file


class Unreadable(Exception):
    """A picture that cannot be decoded; its text says why, the same at every run."""


def open_rgb(body: bytes) -> Image:
    """An encoded picture, decoded whole, as RGB.

    Raises:
        Unreadable: whatever the decoder found wrong with it.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(body)) as image:
            return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # decoders raise what they like: OSError, ValueError, SyntaxError, struct.error, ...
        raise Unreadable(_ADDRESS.sub("", f"{type(error).__name__}: {error}")[:200]) from error


def bodies_of(column: pa.ChunkedArray) -> Iterator[bytes]:
    """The rows of a binary column, one at a time."""
    for chunk in column.chunks:
        for value in chunk:
            yield value.as_py()


def binary_rows(values: npt.NDArray[Any]) -> pa.Array:
    """An array of n rows -> a binary column of n values: each row's own bytes, C order, little-endian."""
    data = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    width = data.nbytes // len(data) if len(data) else 0
    offsets = np.arange(len(data) + 1, dtype=np.int32) * width
    return pa.BinaryArray.from_buffers(
        pa.binary(), len(data), [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(data.tobytes())]
    )
