"""Captions as tokens, and tokens as words: each different token is looked at once, however many captions hold it.

A caption is the sum of its tokens: counts of letters, n-gram vectors and word-list evidence are whole numbers, so that
sums do not depend on the order, the batch or the machine.

Shapes: T captions, M tokens of all of them together, U different tokens, P code points of those, W words.

`take(..., mode="clip")` is only the fastest way to index: no index is out of range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.splitmix import splitmix64

_SPACE = 32
_LONGEST = 4096  # letters
# Odd multipliers, one per position: h(w) = sum of letter x multiplier mod 2^64 is universal in its high bits
# (Dietzfelbinger 1996), and SplitMix64's finaliser spreads it over all bits.
_MULTIPLIERS = splitmix64(np.arange(_LONGEST, dtype=np.uint64)) | np.uint64(1)


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """T captions, none of them empty, cut at spaces and control characters."""

    different: pa.StringArray
    """[U] tokens, each with the space that follows it; in the order of their first occurrence."""
    code: npt.NDArray[np.intp]
    """[M] which of them each token is, caption after caption."""
    first: npt.NDArray[np.intp]
    """[T] each caption's first token."""

    def all_of(self, of_token: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Return, from bit masks [U], the bits that every token of a caption has, [T]."""
        return np.asarray(np.bitwise_and.reduceat(of_token.take(self.code, mode="clip"), self.first))

    def choose(self, captions: npt.NDArray[np.intp]) -> Tokens:
        """Return the tokens of some captions, numbered as before."""
        bounds = np.append(self.first, len(self.code))
        at, first = spans(bounds[captions], bounds[captions + 1])
        return Tokens(different=self.different, code=self.code[at], first=first)


def spans(start: npt.NDArray[np.intp], stop: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return start[0], start[0] + 1, ... stop[0] - 1, start[1], ...; and where each span begins in that."""
    count = stop - start
    first = np.cumsum(count) - count
    return np.repeat(start - first, count) + np.arange(int(count.sum())), first


def totals(
    values: Sequence[npt.NDArray[np.int64]], at: npt.NDArray[np.intp], first: npt.NDArray[np.intp]
) -> npt.NDArray[np.int64]:
    """Return the sums [K, T] of `values` at the places `at`, from each `first` to the next; none of them is empty."""
    sums = np.empty((len(values), len(first)), np.int64)
    for row, lane in zip(sums, values, strict=True):
        np.add.reduceat(lane.take(at, mode="clip"), first, out=row)
    return sums


def tokens(captions: pa.Array) -> Tokens:
    """Cut T captions (strings, no nulls, none empty) into tokens."""
    _, offsets, data = captions.buffers()
    bounds = np.frombuffer(offsets, np.int32)[captions.offset : captions.offset + len(captions) + 1]
    low, high = int(bounds[0]), int(bounds[-1])
    begins = np.empty(high - low + 1, bool)
    np.less_equal(np.frombuffer(data, np.uint8)[low:high], _SPACE, out=begins[1:])
    begins[bounds - low] = True
    edges = np.flatnonzero(begins)  # the last one is the end of the text
    cut = pa.StringArray.from_buffers(len(edges) - 1, pa.py_buffer((edges + low).astype(np.int32)), data)
    different = cut.dictionary_encode()
    return Tokens(
        different=different.dictionary,
        code=different.indices.to_numpy().astype(np.intp),
        first=np.searchsorted(edges, bounds[:-1] - low),
    )


@dataclass(frozen=True, kw_only=True)
class Words:
    """W words, back to back."""

    points: npt.NDArray[np.uint32]
    """Their code points."""
    start: npt.NDArray[np.intp]
    """[W] where each begins; none is empty."""

    @property
    def length(self) -> npt.NDArray[np.intp]:
        """[W] letters of each."""
        return np.diff(self.start, append=len(self.points))

    def choose(self, some: npt.NDArray[np.intp]) -> Words:
        """Return some of the words."""
        at, start = spans(self.start[some], (self.start + self.length)[some])
        return Words(points=self.points[at], start=start)

    def distinct(self) -> tuple[Words, npt.NDArray[np.intp]]:
        """Return the different words in the order of their first occurrence, and [W] which of them each word is."""
        coded = pa.array(self.hashes()).dictionary_encode()
        number = coded.indices.to_numpy().astype(np.intp)
        first = np.empty(len(coded.dictionary), np.intp)
        first[number[::-1]] = np.arange(len(number))[::-1]
        return self.choose(first), number

    def hashes(self) -> npt.NDArray[np.uint64]:
        """Return a 64-bit hash of each word, [W]; equal ones are taken for equal words.

        Among all batches of four billion captions, the chance that this is wrong once is about 1e-5.
        """
        if not len(self.start):
            return np.zeros(0, np.uint64)
        place = np.minimum(np.arange(len(self.points)) - np.repeat(self.start, self.length), _LONGEST - 1)
        terms = (self.points.astype(np.uint64) + np.uint64(1)) * _MULTIPLIERS[place]
        return splitmix64(np.add.reduceat(terms, self.start))


def words_of(texts: Sequence[str]) -> Words:
    """Return each text as one word."""
    length = np.fromiter(map(len, texts), np.intp, len(texts))
    points = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
    return Words(points=points, start=np.cumsum(length) - length)


def code_points(texts: pa.StringArray) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.intp]]:
    """Return the code points of texts (no nulls), back to back, and where each text begins."""
    count = pc.utf8_length(texts).to_numpy(zero_copy_only=False).astype(np.intp)
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    raw = b"" if data is None else memoryview(data)[int(bounds[0]) : int(bounds[-1])]
    points = np.frombuffer(bytes(raw).decode().encode("utf-32-le"), np.uint32)
    return points, np.cumsum(count) - count


class WordTable:
    """Numbers of known words by hash, for columns of words."""

    def __init__(self, hashes: npt.NDArray[np.uint64], bits: int = 20) -> None:
        """Number the words by their place; of equal hashes the first one counts.

        Args:
            bits: of a hash that choose its bucket; a few more than the number of words has.
        """
        self._shift = np.uint64(64 - bits)
        self._order = np.argsort(hashes, kind="stable").astype(np.int32)
        self._sorted = hashes[self._order]
        edges = np.arange((1 << bits) + 1, dtype=np.uint64) << self._shift
        edges[-1] = np.iinfo(np.uint64).max
        self._bucket = np.searchsorted(self._sorted, edges).astype(np.int32)
        self._bucket[-1] = len(hashes)

    def find(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
        """Return the number of each word, [W], -1 for an unknown one."""
        found = np.full(len(hashes), -1, np.int32)
        if not len(self._sorted):
            return found
        bucket = (hashes >> self._shift).astype(np.intp)
        at, end = self._bucket[bucket], self._bucket[bucket + 1]
        open_ones = np.flatnonzero(at < end)
        while len(open_ones):
            here = at[open_ones]
            hit = self._sorted[here] == hashes[open_ones]
            found[open_ones[hit]] = self._order[here[hit]]
            at[open_ones] += 1
            open_ones = open_ones[~hit & (here + 1 < end[open_ones])]
        return found
