"""The rows of one language of a part, in one piece of memory: a batch is gathered with one operation per tensor.

A batch takes a few rows of each of the chunks in a language's window, for every language. With a tensor per chunk
that is hundreds of operations per batch. Here the chunks of a language share one tensor, in places of equal size.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from altdiffusion.training.data.language_chunks import LanguageChunks, row_bytes
from altdiffusion.training.data.layout import Mixed, Rows, check_shape, copy_rows
from altdiffusion.training.order.language_rows import ChosenRows
from altdiffusion.training.order.permutation import I64


class Groups(Protocol):
    """What is needed of the row groups of all languages (see `RowGroups`)."""

    starts: I64

    def decoded(
        self, number: int, rows: I64 | None = None, *, languages: bool = False
    ) -> tuple[Rows, npt.NDArray[np.object_]]: ...

    def key_of(self, number: int) -> str: ...

    def dataset_of(self, number: int) -> str: ...

    def naming(self, number: int) -> contextlib.AbstractContextManager[None]: ...

    def close(self) -> None: ...


class LanguageRows:
    """The rows of one language, kept by chunk of the order: what a window of the order takes is what is in memory.

    Args:
        groups: the row groups of all languages.
        chosen: the rows of the language.
        language: its code.
        chunk_rows: rows per chunk of the language's order.
        cache_bytes: memory for chunks; the least recently used one is dropped first. Those that are read ahead take up
            to half as much again until they are gathered.
        disk: where the rows of each language are kept on this machine; None reads them from the dataset each time.
        like: what a row looks like, tensors [0, ...]; the first who reads one fills it in for all languages.
        pool: threads that read chunks in parallel.
    """

    def __init__(
        self,
        groups: Groups,
        *,
        chosen: ChosenRows,
        language: str,
        chunk_rows: int,
        cache_bytes: int,
        disk: LanguageChunks | None,
        like: Rows,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._groups, self._chosen, self._language, self._disk = groups, chosen, language, disk
        self._chunk_rows, self._cache_bytes = chunk_rows, cache_bytes
        self._like, self._pool = like, pool
        self._memory: Rows = {}
        self._most_kept = self._most_ahead = 1
        self._free: list[int] = []  # places in memory, of a chunk each
        self._kept: OrderedDict[int, int] = OrderedDict()  # chunk -> place
        self._reading: dict[int, tuple[int, Future[None]]] = {}

    @property
    def rows(self) -> int:
        return len(self._chosen)

    @property
    def cached_bytes(self) -> int:
        """Return the bytes of the rows that are kept."""
        return sum(self._rows_in(number) for number in self._kept) * row_bytes(self._like)

    def empty(self, count: int) -> Rows:
        """Return empty tensors for `count` samples."""
        self._make_room()
        return {name: tensor.new_empty((count, *tensor.shape[1:])) for name, tensor in self._like.items()}

    def begin(self, rows: I64) -> bool:
        """Begin to read the chunks of rows that will be gathered soon, as far as the memory for them goes.

        Args:
            rows: int64 [K], ascending.

        Returns:
            Whether it went for all of them; otherwise, a later call begins the others.
        """
        self._make_room()
        for number in self._chunks_of(rows)[0]:
            if number not in self._kept and number not in self._reading:
                if len(self._reading) >= self._most_ahead:
                    return False
                self._begin(number)
        return True

    def gather(self, rows: I64, into: Rows, mirrored: npt.NDArray[np.bool_] | None = None) -> None:
        """Write the samples of `rows`, in ascending order, into tensors [K, ...] like those of `empty(K)`."""
        self._make_room()
        numbers, starts = self._chunks_of(rows)
        for some in range(0, len(numbers), self._most_kept):  # what is kept for one is not dropped for the next
            here = numbers[some : some + self._most_kept]
            first, last = int(starts[some]), int(starts[some + len(here)])
            try:
                moved = np.array([self._place(number) - number for number in here]) * self._chunk_rows
                counts = starts[some + 1 : some + 1 + len(here)] - starts[some : some + len(here)]
                index = torch.from_numpy(rows[first:last] + moved.repeat(counts))
                for name, tensor in self._memory.items():
                    check_shape(name, tensor, into[name])
                    torch.index_select(tensor, 0, index, out=into[name][first:last])
            except Mixed as error:
                raise error.refused(self._groups.dataset_of(self._group_of(here[0]))) from None

    def close(self) -> None:
        """Wait for what is being read, close the open shards and give up the disk; a later call opens them again."""
        wait([reading for _, reading in self._reading.values() if not reading.cancel()])
        self._free += [place for place, _ in self._reading.values()]
        self._reading.clear()
        self._groups.close()
        if self._disk is not None:
            self._disk.close()

    def _make_room(self) -> None:
        """Reserve the memory for chunks; what is not used of it takes none."""
        if self._memory:
            return
        if not self._like:
            row = self._chosen.rows(np.zeros(1, np.int64))
            group = self._group_of(0)
            decoded = self._groups.decoded(group, row - self._groups.starts[group])[0]
            self._like.update({name: tensor[:0] for name, tensor in decoded.items()})
        chunk_bytes = self._chunk_rows * row_bytes(self._like)
        self._most_kept = max(1, self._cache_bytes // chunk_bytes)
        self._most_ahead = max(1, self._cache_bytes // 2 // chunk_bytes)
        places = min(self._most_kept + self._most_ahead, -(-self.rows // self._chunk_rows))
        rows = places * self._chunk_rows
        self._memory = {name: tensor.new_empty((rows, *tensor.shape[1:])) for name, tensor in self._like.items()}
        self._free = list(range(places))[::-1]

    def _chunks_of(self, rows: I64) -> tuple[list[int], I64]:
        """Return the chunks of rows in ascending order, and where the rows of each start in them; and their end."""
        numbers = rows // self._chunk_rows
        starts = np.concatenate(([0], np.flatnonzero(numbers[1:] != numbers[:-1]) + 1))
        return numbers[starts].tolist(), np.append(starts, len(rows))

    def _rows_in(self, number: int) -> int:
        return min(self._chunk_rows, self.rows - number * self._chunk_rows)

    def _group_of(self, number: int) -> int:
        """Return the row group of a chunk's first row."""
        row = self._chosen.rows(np.array([number * self._chunk_rows]))
        return int(np.searchsorted(self._groups.starts, row[0], side="right")) - 1

    def _begin(self, number: int) -> None:
        place = self._free.pop()
        self._reading[number] = place, self._pool.submit(self._read, number, place)

    def _place(self, number: int) -> int:
        """Return the place of a chunk in memory, where it stays until as many others as are kept have been used."""
        found = self._kept.get(number)
        if found is not None:
            self._kept.move_to_end(number)
            return found
        if len(self._kept) == self._most_kept:  # room first: the bound always holds
            self._free.append(self._kept.popitem(last=False)[1])
        if number not in self._reading:
            self._begin(number)
        place, reading = self._reading.pop(number)
        try:
            reading.result()
        except Exception:
            self._free.append(place)
            raise
        self._kept[number] = place
        return place

    def _read(self, number: int, place: int) -> None:
        """Read a chunk into its place."""
        first, at = number * self._chunk_rows, place * self._chunk_rows
        wanted = self._chosen.some(first, first + self._rows_in(number))
        groups = np.searchsorted(self._groups.starts, wanted, side="right") - 1
        ends = [*(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(wanted)]
        for start, end in zip([0, *ends], ends, strict=False):
            into = {name: tensor[at + start : at + end] for name, tensor in self._memory.items()}
            self._fill(int(groups[start]), wanted[start:end], first + start, into)

    def _fill(self, group: int, rows: I64, first: int, into: Rows) -> None:
        """Read rows of one row group, the first of which is the language's row `first`."""
        start, stop = int(self._groups.starts[group]), int(self._groups.starts[group + 1])
        if self._disk is None:
            copy_rows(self._groups.decoded(group, rows - start)[0], into)
            return
        with self._groups.naming(group):
            self._disk.read(
                self._groups.key_of(group),
                stop - start,
                self._language,
                first - self._chosen.between(start, stop)[0],
                into,
                lambda: self._groups.decoded(group, languages=True),
            )
