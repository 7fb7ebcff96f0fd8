"""64-bit hashes and keyed draws for whole columns, the same on every machine.

Neither is cryptographic: they spread rows over buckets and decide keyed draws. Where equality matters, values are
compared, not hashes.
"""

from __future__ import annotations

import itertools
import sys

import mmh3
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from altdiffusion.splitmix import FIRST, GAMMA, Words, splitmix64

_LONG = 4096
"""Bytes; longer values are hashed one by one, so that a single value of megabytes does not cost one pass per word."""


def uniform(seed: int, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return a draw from [0, 1) for each id, float64 [N]: a function of (seed, id) alone, with 53 random bits."""
    key = splitmix64(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64))
    bits = splitmix64(ids.astype(np.int64).view(np.uint64) ^ key) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def hash64(values: pa.Array | pa.ChunkedArray) -> Words:
    """Return a hash of each string's bytes, uint64 [N]; null is hashed like the empty string.

    Eight bytes per step, all rows at once: the rows are ordered by length, so that each step works on a prefix of them.
    """
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if isinstance(array, pa.ChunkedArray):  # a string column of more than 2 GiB stays in pieces
        return np.concatenate([hash64(chunk) for chunk in array.chunks])
    if not len(array):
        return np.zeros(0, np.uint64)
    offsets, body = _buffers(array)
    lengths = offsets[1:] - offsets[:-1]
    data = np.zeros(len(body) + 8, np.uint8)  # a last word may reach over the end
    data[: len(body)] = body
    words = np.ndarray((len(body) + 1,), "<u8", data, strides=(1,))  # the eight bytes from each byte on
    whole = np.minimum(lengths, _LONG) >> 3
    order = np.argsort((_LONG - whole).astype(np.uint16), kind="stable")  # a radix sort
    at, whole, length = offsets[:-1][order], whole[order], lengths[order]
    state = length.astype(np.uint64) * GAMMA
    left = np.searchsorted(-whole, -np.arange(1, whole[0] + 1), side="right")
    for rows in left:
        step = state[:rows]
        step ^= words[at[:rows]]
        step *= FIRST
        step ^= step >> np.uint64(29)
        at[:rows] += 8
    rest = (np.uint64(1) << ((length & 7).astype(np.uint64) * np.uint64(8))) - np.uint64(1)
    result = np.empty(len(array), np.uint64)
    result[order] = splitmix64(state ^ (words[at] & rest))
    for row in np.flatnonzero(lengths > _LONG):
        digest = mmh3.mmh3_x64_128_digest(body[offsets[row] : offsets[row + 1]].tobytes())
        result[row] = int.from_bytes(digest[:8], "little")
    return result


def murmur64(values: pa.Array) -> pa.Array:
    """Return `mmh3.hash64(text)[0]` of each string, int64 [N], LAION's row id for url + text.

    No library computes MurmurHash3 for whole columns, so this is one call per row, on the buffer, without
    making strings.
    """
    offsets, body = _buffers(values)
    digest, view = mmh3.mmh3_x64_128_digest, body.data
    digests = b"".join([digest(view[start:stop]) for start, stop in itertools.pairwise(offsets.tolist())])
    return pa.array(np.frombuffer(digests, "<i8")[::2])


def rows_with(array: pa.Array, character: str) -> npt.NDArray[np.intp]:
    """Return the rows of a string array that hold an ASCII character, ascending: faster than a search of each row."""
    offsets, body = _buffers(array)
    found = np.searchsorted(offsets, np.flatnonzero(body == ord(character)), side="right") - 1
    return found[np.flatnonzero(np.diff(found, prepend=-1))]


def _buffers(array: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Return the offsets (one more than rows) into the bytes of a string array; null has no bytes."""
    if sys.byteorder != "little":
        raise RuntimeError("hashes of columns are written for little-endian machines")
    width = np.int64 if pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type) else np.int32
    if array.null_count:
        array = array.fill_null("")
    offsets = np.frombuffer(array.buffers()[1], width)[array.offset : array.offset + len(array) + 1].astype(np.int64)
    body = array.buffers()[2]
    data = np.frombuffer(body, np.uint8) if body is not None and body.size else np.zeros(0, np.uint8)
    return offsets - offsets[0], data[offsets[0] : offsets[-1]]
