"""fastText's supervised models, read from their files and evaluated for whole columns of words.

The model (Joulin et al., arXiv 1607.01759) averages one vector for each known word and for each of its letter n-grams,
and walks a Huffman tree of logistic nodes to the labels. Each different word is summed up once, in whole numbers: a
caption's sum is that of its words, whatever the order, the batch or the machine. Probabilities are fastText's own to
about 1e-3 (a test compares them).

Format: fastText's `saveModel`, version 12, with or without product quantisation; the letters' hash is FNV-1a over
signed bytes, as there.

Shapes: D dimensions of the model, L labels, W words, T captions.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from altdiffusion.curation.language.caption_words import Words, WordTable, words_of
from altdiffusion.errors import AltDiffusionError

MAX_LETTERS = 4096
"""The most that a caption may have; what is longer cannot be summed exactly."""
_MAGIC, _VERSION = 793712314, 12
_SUPERVISED, _HIERARCHICAL = 3, 1
_LABEL, _END = b"__label__", b"</s>"
_FNV_START, _FNV_PRIME = np.uint32(2166136261), np.uint32(16777619)
_OPEN, _CLOSE = ord("<"), ord(">")
_AT_ONCE = 4096  # words: their n-grams' arrays fit a core's cache
_COLUMNS = 256  # OpenBLAS starts threads for larger products; workers share a machine
_BITS = 16  # of the fraction, in the product of two whole numbers


class FastTextModel:
    """One model. All sums are int64 columns that hold two dimensions each."""

    labels: tuple[str, ...]

    def __init__(self, data: bytes, name: str) -> None:
        """Read a model file.

        Args:
            data: the bytes of the file.
            name: what errors call it.

        Raises:
            AltDiffusionError: it is not a fastText model, or of a kind that is not read here.
        """
        try:
            self._read(_Reader(data), name)
        except (struct.error, ValueError, IndexError, ArithmeticError) as error:
            raise AltDiffusionError(
                f"model {name}", f"is not a fastText model ({error})", "give a .ftz or .bin file of a supervised model"
            ) from error

    def _read(self, file: _Reader, name: str) -> None:
        magic, version = file.numbers("ii")
        if magic != _MAGIC or version != _VERSION:
            raise ValueError(f"magic number {magic}, version {version}")
        dimensions, _, _, _, _, word_ngrams, loss, kind, buckets, low, high, _, _ = file.numbers("12id")
        if (kind, loss, word_ngrams) != (_SUPERVISED, _HIERARCHICAL, 1):
            raise AltDiffusionError(
                f"model {name}",
                f"is of another kind (model {kind}, loss {loss}, word n-grams {word_ngrams})",
                "give a supervised model with hierarchical softmax and single words, as lid.176 is, or set "
                "language.engine: fasttext, which reads any",
            )
        size, words, labels, _, pruned = file.numbers("iiiqq")
        entries = [file.entry() for _ in range(size)]
        self.labels = tuple(word.removeprefix(_LABEL).decode() for word, _ in entries[words:])
        self._low, self._high, self._buckets = low, high, buckets
        self._slot: npt.NDArray[np.int32] | None = None
        if pruned >= 0:
            pairs = file.array("<i4", 2 * pruned).reshape(-1, 2)
            self._slot = np.full(max(buckets, 1), -1, np.int32)
            self._slot[pairs[:, 0]] = words + pairs[:, 1]
        self._words = words
        known = [word.decode("utf-8", "replace") for word, _ in entries[:words]]
        self._vocabulary = WordTable(words_of(known).hashes())
        (quantised,) = file.numbers("?")
        rows = file.quantised() if quantised else file.dense()
        file.numbers("?")  # whether the output is quantised too, where the input is
        output = file.dense().astype(np.float64)
        if rows.shape[1] != dimensions or output.shape != (labels, dimensions):
            raise ValueError(f"matrices {rows.shape} and {output.shape} of {labels} labels")
        self._tree = _huffman([count for _, count in entries[words:]])
        self._dimensions = dimensions
        ids = MAX_LETTERS * max(_vectors_of(letters, low, high) / letters for letters in range(1, high + 3))
        largest = max(float(rows.max()), -float(rows.min()))
        self._shift = int(np.floor(np.log2((2**31 - 1) / (ids * largest))))
        self._rows = np.zeros((-(-dimensions // 2), len(rows)), np.int64)
        for number in range(dimensions):  # column by column: the largest models have 2 million rows
            whole = np.rint(np.ldexp(rows[:, number].astype(np.float64), self._shift)).astype(np.int64)
            self._rows[number // 2] += whole << (32 * (number % 2))
        self._output = np.rint(np.ldexp(output[: labels - 1], _BITS))
        self._end = self._rows[:, known.index(_END.decode())] if _END.decode() in known else None

    @property
    def lanes(self) -> int:
        """Columns of `sums`."""
        return len(self._rows)

    def sums(self, words: Words) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the sum [lanes, W] of each word's vectors, and [W] how many they are."""
        total = np.zeros((self.lanes, len(words.start)), np.int64)
        count = np.zeros(len(words.start), np.int64)
        for start in range(0, len(words.start), _AT_ONCE):
            stop = min(start + _AT_ONCE, len(words.start))
            for word, row in self._vectors(words.choose(np.arange(start, stop))):
                if not len(word):
                    continue
                first = np.flatnonzero(np.diff(word, prepend=-1))
                once = word[first] + start
                for lane, values in zip(total, self._rows, strict=True):
                    lane[once] += np.add.reduceat(values.take(row, mode="clip"), first)
                count[once] += np.diff(first, append=len(word))
        return total, count

    def _vectors(self, words: Words) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
        """Return (number of the word, row of its vector), sorted by word: known words, then n-grams by length."""
        known = self._vocabulary.find(words.hashes())
        hit = np.flatnonzero(known >= 0)
        yield hit, known[hit].astype(np.intp)
        if not self._high:
            return
        length = words.length + 2
        begin = np.cumsum(length) - length
        word = np.repeat(np.arange(len(length)), length)
        points = np.empty(len(word), np.uint32)
        inner = np.ones(len(word), bool)
        inner[begin] = inner[begin + length - 1] = False
        points[begin], points[begin + length - 1] = _OPEN, _CLOSE
        points[inner] = words.points
        hashing = _Fnv(points)
        hashes = np.full(len(points), _FNV_START, np.uint32)
        for n in range(1, self._high + 1):
            hashes = hashing.step(hashes[: max(len(points) - n + 1, 0)], n - 1)
            if n < self._low or not len(hashes):
                continue
            whole = word[n - 1 :] == word[: len(hashes)]
            if n == 1:  # the brackets alone are not n-grams
                whole[begin] = whole[begin + length - 1] = False
            at = np.flatnonzero(whole)
            bucket = hashes[at] % np.uint32(self._buckets)
            if self._slot is None:
                yield word[at], self._words + bucket.astype(np.intp)
                continue
            slot = self._slot[bucket]
            hit = np.flatnonzero(slot >= 0)
            yield word[at[hit]], slot[hit].astype(np.intp)

    def probabilities(self, sums: npt.NDArray[np.int64], count: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the probability [L, T] of each label for captions of these sums of vectors ([lanes, T] and [T])."""
        if self._end is not None:
            sums, count = sums + self._end[:, None], count + 1
        low = (sums << 32) >> 32
        both = np.empty((2 * len(sums), sums.shape[1]))
        both[::2], both[1::2] = low, (sums - low) >> 32
        mean = np.rint(both[: self._dimensions] * np.ldexp(1.0 / np.maximum(count, 1), _BITS - self._shift))
        nodes = np.empty((len(self._output), sums.shape[1]), np.float32)
        for start in range(0, sums.shape[1], _COLUMNS):
            # whole numbers below 2^53: the product is exact, in whatever order BLAS adds
            nodes[:, start : start + _COLUMNS] = self._output @ mean[:, start : start + _COLUMNS] * 2.0 ** (-2 * _BITS)
        with np.errstate(over="ignore"):  # 1 / (1 + inf) is the right 0
            np.exp(np.negative(nodes, out=nodes), out=nodes)
        nodes += np.float32(1)
        np.reciprocal(nodes, out=nodes)
        labels = len(self.labels)
        reached = np.empty((2 * labels - 1, sums.shape[1]), np.float32)
        reached[-1] = 1
        for node in range(2 * labels - 2, labels - 1, -1):
            left, right = self._tree[node - labels]
            np.multiply(reached[node], nodes[node - labels], out=reached[right])
            np.subtract(reached[node], reached[right], out=reached[left])
        return reached[:labels]


class _Fnv:
    """FNV-1a over the signed UTF-8 bytes of letters, for all places of a text at once."""

    def __init__(self, points: npt.NDArray[np.uint32]) -> None:
        first = points.copy()
        self._more: list[tuple[npt.NDArray[np.intp], npt.NDArray[np.uint32]]] = []
        long = np.flatnonzero(points >= 0x80)
        value = points[long]
        bytes_ = 2 + (value >= 0x800).astype(np.uint32) + (value >= 0x10000)
        lead = (np.uint32(0xF00) >> bytes_) & np.uint32(0xFF)  # 110xxxxx, 1110xxxx, 11110xxx
        first[long] = lead | (value >> (np.uint32(6) * (bytes_ - np.uint32(1)))) | np.uint32(0xFFFFFF00)
        for number in range(2, 5):
            some = np.flatnonzero(bytes_ >= number)
            if not len(some):
                break
            byte = (value[some] >> (np.uint32(6) * (bytes_[some] - np.uint32(number)))) & np.uint32(0x3F)
            self._more.append((long[some], byte | np.uint32(0xFFFFFF80)))
        self._first = first

    def step(self, hashes: npt.NDArray[np.uint32], ahead: int) -> npt.NDArray[np.uint32]:
        """Return each place's hash, extended by the letter `ahead` places on."""
        hashes = (hashes ^ self._first[ahead : ahead + len(hashes)]) * _FNV_PRIME
        for at, byte in self._more:
            low = int(np.searchsorted(at, ahead))
            here = at[low:] - ahead
            hashes[here] = (hashes[here] ^ byte[low:]) * _FNV_PRIME
        return hashes


@dataclass
class _Reader:
    """A model file, read from its start on."""

    data: bytes
    place: int = 0

    def numbers(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self.data, self.place)
        self.place += struct.calcsize("<" + form)
        return values

    def array(self, dtype: str, count: int) -> npt.NDArray[Any]:
        values = np.frombuffer(self.data, dtype, count, self.place)
        self.place += values.nbytes
        return values

    def entry(self) -> tuple[bytes, int]:
        """Return a word or label and how often the training text had it."""
        end = self.data.index(0, self.place)
        word = self.data[self.place : end]
        self.place = end + 1
        count, _ = self.numbers("qb")
        return word, count

    def dense(self) -> npt.NDArray[np.float32]:
        rows, columns = self.numbers("qq")
        return self.array("<f4", rows * columns).reshape(rows, columns)

    def quantised(self) -> npt.NDArray[np.float32]:
        """Return the rows from their codes (Jégou et al., "Product quantization for nearest neighbor search", 2011)."""
        scaled, rows, columns, size = self.numbers("?qqi")
        codes = self.array("u1", size).reshape(rows, -1)
        vectors = np.concatenate([part[codes[:, number]] for number, part in enumerate(self._centroids())], axis=1)
        if scaled:
            norm_codes = self.array("u1", rows)
            (norms,) = self._centroids()
            vectors = vectors * norms[norm_codes]
        if vectors.shape[1] != columns:
            raise ValueError(f"{vectors.shape[1]} of {columns} columns")
        return np.asarray(vectors, np.float32)

    def _centroids(self) -> list[npt.NDArray[np.float32]]:
        dimensions, parts, width, last = self.numbers("iiii")
        values = self.array("<f4", dimensions * 256)
        widths = [width] * (parts - 1) + [last]
        edges = np.cumsum([0, *widths]) * 256
        return [values[edges[n] : edges[n + 1]].reshape(256, widths[n]) for n in range(parts)]


def _vectors_of(letters: int, low: int, high: int) -> int:
    """Return the most vectors that a word of some length has: its own, and one for each n-gram of it in brackets."""
    single = letters if low <= 1 else 0
    return 1 + single + sum(max(letters + 3 - n, 0) for n in range(max(low, 2), high + 1))


def _huffman(counts: list[int]) -> list[tuple[int, int]]:
    """Return the children (left, right) of inner nodes L, L + 1, ... of the tree over L labels with falling counts."""
    labels = len(counts)
    weight = [*counts, *[10**15] * (labels - 1)]
    leaf, inner = labels - 1, labels
    children = []
    for node in range(labels, 2 * labels - 1):
        pair = []
        for _ in range(2):
            if leaf >= 0 and weight[leaf] < weight[inner]:
                pair.append(leaf)
                leaf -= 1
            else:
                pair.append(inner)
                inner += 1
        children.append((pair[0], pair[1]))
        weight[node] = weight[pair[0]] + weight[pair[1]]
    return children
