"""Reads the samples of a batch: row groups, kept in a bounded cache, one thread ahead of the loop.

A dataset version is a sequence of Parquet shards; a part of the training mixture is one version, or several in a row.
A row number is found in its row group by one binary search, a row group is decoded as a whole without a loop over
rows, and a batch is gathered with one index operation per row group.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from altdiffusion.diffusion.image_crop import Unreadable
from altdiffusion.errors import AltDiffusionError
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Version
from altdiffusion.storage.shard_reader import ShardReader, naming_shard
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.data.language_chunks import LanguageChunks
from altdiffusion.training.data.language_rows import LanguageRows
from altdiffusion.training.data.layout import Layout, Mixed, Rows
from altdiffusion.training.order.batches import Batch, Order
from altdiffusion.training.order.language_rows import ChosenRows, choose
from altdiffusion.training.order.mixture import Source, chunk_rows_of
from altdiffusion.training.order.permutation import I64
from altdiffusion.training.order.skips import Windows, batch_at

OPEN_FILES = 16
READ_THREADS = 2
LOOKAHEAD = 16
"""Batches whose row groups are being read while earlier ones are gathered: no batch waits at the end of a window."""

Coins = npt.NDArray[np.bool_]
"""One per sample: whether it is mirrored."""

_Piece = tuple[int, int, int]
"""The samples of a batch that are of one part: the part's number, the first sample, and one after the last."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What the loop needs of some samples; all tensors are in host memory, with one element or row per sample."""

    step: int
    """Number of the global batch."""
    positions: Tensor
    """int64 [B]: key of everything that is drawn for the sample."""
    tensors: Mapping[str, Tensor]
    """Tensors [B, ...] by name, as the layout of the datasets' rows defines them."""

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def micro(self, size: int) -> Iterator[Samples]:
        """Yield the same in pieces of `size` samples."""
        for start in range(0, len(self.positions), size):
            piece = slice(start, start + size)
            yield Samples(
                step=self.step,
                positions=self.positions[piece],
                tensors={name: tensor[piece] for name, tensor in self.tensors.items()},
            )


class RowGroups:
    """All rows of some versions, numbered in sequence, read by row group.

    Args:
        versions: all of the layout's kind, with rows of one shape.
        layout: how their rows become tensors.
        cache_bytes: memory for decoded row groups; the least recently used one is dropped first. Those that are read
            ahead take up to half as much again until they are gathered.
        chosen: only these rows, numbered among themselves; no other rows of a row group are kept.
        pool: threads that read row groups in parallel; by default READ_THREADS of its own.
    """

    def __init__(
        self,
        versions: Sequence[Version],
        layout: Layout,
        *,
        cache_bytes: int,
        chosen: ChosenRows | None = None,
        pool: ThreadPoolExecutor | None = None,
    ) -> None:
        self._layout, self._chosen = layout, chosen
        self._files: list[tuple[Version, int]] = []
        starts: list[int] = [0]
        shard_of: list[int] = []
        group_of: list[int] = []
        for version in versions:
            if version.manifest.kind != layout.kind:
                raise AltDiffusionError(
                    version.ref.short,
                    f"holds {version.manifest.kind}, not {layout.kind}",
                    layout.remedy,
                )
            if version.rows == 0:
                raise AltDiffusionError(
                    version.ref.short,
                    "holds no rows",
                    "look at its rejects by reason, then curate again",
                )
            for number, shard in enumerate(version.shards):
                for group, first in enumerate(range(0, shard.rows, shard.row_group_rows)):
                    starts.append(starts[-1] + min(shard.row_group_rows, shard.rows - first))
                    shard_of.append(len(self._files))
                    group_of.append(group)
                self._files.append((version, number))
        self.starts = np.asarray(starts, dtype=np.int64)
        """The number of the first row of each row group, and of one after the last."""
        self._shard_of, self._group_of = shard_of, group_of
        self._cache: OrderedDict[int, tuple[int, Rows]] = OrderedDict()
        self._shapes: Rows | None = None
        self._cache_bytes = cache_bytes
        self._pool = pool or reading_threads()
        self._reading: dict[int, Future[tuple[int, Rows]]] = {}
        self._readers = threading.local()  # a reader serves one thread
        self._opened: list[_OpenShards] = []
        self.cached_bytes = 0
        self.groups_read = 0

    @property
    def rows(self) -> int:
        return int(self.starts[-1]) if self._chosen is None else len(self._chosen)

    def empty(self, count: int) -> Rows:
        """Return empty tensors for `count` samples, shaped as in the first row group."""
        if self._shapes is None:
            _, first = self._group(int(self._groups_of(np.zeros(1, np.int64))[0]))
            self._shapes = self._layout.empty(first, 0)
        return {name: tensor.new_empty((count, *tensor.shape[1:])) for name, tensor in self._shapes.items()}

    def gather(self, rows: I64, into: Rows, mirrored: Coins | None = None) -> None:
        """Write the samples of `rows`, in ascending order, into tensors [K, ...] like those of `empty(K)`."""
        group = self._groups_of(rows)
        firsts = np.flatnonzero(np.diff(group, prepend=-1))
        waiting: list[tuple[Future[None], int]] = []
        for first, last in zip(firsts.tolist(), [*firsts[1:].tolist(), len(rows)], strict=True):
            number = int(group[first])
            here = {name: tensor[first:last] for name, tensor in into.items()}
            try:
                kept_from, tensors = self._group(number)
                index = torch.from_numpy(rows[first:last] - kept_from)
                filling = self._layout.fill(tensors, index, here, None if mirrored is None else mirrored[first:last])
            except Mixed as error:
                raise error.refused(self.dataset_of(number)) from None
            waiting += [(future, number) for future in filling]
        for future, number in waiting:
            try:
                future.result()
            except Unreadable as error:
                raise AltDiffusionError(
                    self.dataset_of(number),
                    f"holds an image that cannot be decoded ({error})",
                    "train on latents: the encode job leaves such images out and counts them",
                ) from error

    def dataset_of(self, number: int) -> str:
        """Return the dataset of a row group, for people."""
        return self._files[self._shard_of[number]][0].ref.short

    def key_of(self, number: int) -> str:
        """Return what names a row group: equal names, equal rows."""
        version, shard = self._files[self._shard_of[number]]
        return f"{version.shards[shard].sha256}-{self._group_of[number]}"

    def naming(self, number: int) -> contextlib.AbstractContextManager[None]:
        """Turn errors of what is read of a row group into one that names its shard."""
        version, shard = self._files[self._shard_of[number]]
        return naming_shard(version.shard_uri(shard))

    def begin(self, rows: I64) -> bool:
        """Begin to read the row groups of rows that will be gathered soon, as far as the memory for them goes.

        Returns:
            Whether it went for all of them; otherwise, a later call begins the others.
        """
        numbers = np.unique(self._groups_of(rows)).tolist()
        for number in numbers:
            if number not in self._cache and number not in self._reading:
                if self._reading and self._group_bytes() * (len(self._reading) + 1) > self._cache_bytes // 2:
                    return False
                self._reading[number] = self._pool.submit(self._read, number)
        return True

    def close(self) -> None:
        """Wait for what is being read and close the open shards; a later call opens them again."""
        wait([reading for reading in self._reading.values() if not reading.cancel()])
        self._reading.clear()
        for opened in self._opened:
            with opened.used:
                while opened.readers:
                    opened.readers.popitem()[1].close()

    def _group_bytes(self) -> int:
        """Return the bytes of one decoded row group, as far as they are known."""
        return self.cached_bytes // len(self._cache) if self._cache else 0

    def _groups_of(self, rows: I64) -> I64:
        """Return the row groups of some rows."""
        numbers = rows if self._chosen is None else self._chosen.rows(rows)
        return np.searchsorted(self.starts, numbers, side="right") - 1

    def _group(self, number: int) -> tuple[int, Rows]:
        """Return the number of the first row that is kept of a row group, and what is kept."""
        found = self._cache.get(number)
        if found is not None:
            self._cache.move_to_end(number)
            return found
        reading = self._reading.pop(number, None) or self._pool.submit(self._read, number)
        found = reading.result()
        self.groups_read += 1
        size_bytes = _bytes(found[1])
        while self._cache and self.cached_bytes + size_bytes > self._cache_bytes:  # room first: the bound always holds
            self.cached_bytes -= _bytes(self._cache.popitem(last=False)[1][1])
        self._cache[number] = found
        self.cached_bytes += size_bytes
        return found

    def _read(self, number: int) -> tuple[int, Rows]:
        start, stop = int(self.starts[number]), int(self.starts[number + 1])
        if self._chosen is None:
            return start, self.decoded(number)[0]
        first, rows = self._chosen.between(start, stop)
        return first, self.decoded(number, rows - start)[0]

    def decoded(
        self, number: int, rows: I64 | None = None, *, languages: bool = False
    ) -> tuple[Rows, npt.NDArray[np.object_]]:
        """Return a row group, or some rows of it, and the language of each row if asked for: then, in memory that this
        thread's next call overwrites."""
        version, shard = self._files[self._shard_of[number]]
        columns, equal = self._layout.columns, self._layout.equal
        opened = self._open_shards()
        with self.naming(number), opened.used:
            reader = opened.reader(self._shard_of[number], version.shard_uri(shard), version.shards[shard].bytes)
            more = ("language",) if languages else ()
            table = reader.read(self._group_of[number], (*columns, *more), equal=equal, rows=rows, kept=languages)
            names = table.column("language").to_numpy() if languages else np.empty(0, object)
            return self._layout.decode(table), names

    def _open_shards(self) -> _OpenShards:
        """Return this thread's open shards."""
        if not hasattr(self._readers, "open"):
            self._readers.open = _OpenShards()
            self._opened.append(self._readers.open)
        found: _OpenShards = self._readers.open
        return found


class _OpenShards:
    """The shards that one thread has open."""

    def __init__(self) -> None:
        self.used = threading.Lock()
        """Held while a shard is read, and by another thread that closes them."""
        self.readers: OrderedDict[int, ShardReader] = OrderedDict()

    def reader(self, number: int, uri: str, size_bytes: int) -> ShardReader:
        """Return the reader of a shard; the least recently used one is closed where too many are open."""
        if number in self.readers:
            self.readers.move_to_end(number)
            return self.readers[number]
        reader = self.readers[number] = ShardReader(uri, size_bytes)
        if len(self.readers) > OPEN_FILES:
            self.readers.popitem(last=False)[1].close()
        return reader


class MirroredRowGroups:
    """Rows of latents and of their mirrored latents, behind the one interface of `RowGroups`."""

    def __init__(self, plain: RowGroups | LanguageRows, mirrored: RowGroups | LanguageRows) -> None:
        self._plain, self._mirrored = plain, mirrored

    def empty(self, count: int) -> Rows:
        return self._plain.empty(count)

    def begin(self, rows: I64) -> bool:
        begun = self._plain.begin(rows)
        return self._mirrored.begin(rows) and begun

    def gather(self, rows: I64, into: Rows, mirrored: Coins | None = None) -> None:
        """Gather as RowGroups does, each row from the one or the other."""
        if mirrored is None:
            self._plain.gather(rows, into)
            return
        for source, chosen in ((self._plain, ~mirrored), (self._mirrored, mirrored)):
            numbers = np.flatnonzero(chosen)
            if numbers.size:
                found = source.empty(len(numbers))
                source.gather(rows[numbers], found)
                for name, tensor in found.items():
                    into[name].index_copy_(0, torch.from_numpy(numbers), tensor)

    def close(self) -> None:
        self._plain.close()
        self._mirrored.close()


RowsOfPart = RowGroups | LanguageRows | MirroredRowGroups
"""What batches are gathered from: the rows of a part of the order."""


def reading_threads() -> ThreadPoolExecutor:
    """Return a pool of threads that read and decode row groups."""
    return ThreadPoolExecutor(READ_THREADS, thread_name_prefix="row-groups")


def prepare_sources(sources: Sequence[Source]) -> None:
    """Make the files of row numbers that `open_sources` will map; one process calls it before the others open them."""
    for source in sources:
        if source.language is not None:
            choose(source.versions, source.language)


def open_sources(
    config: TrainConfig, sources: Sequence[Source], layout: Layout, mirrored: Mapping[Ref, Version] | None = None
) -> list[RowsOfPart]:
    """Return the rows of each source. Groups share the cache equally, the languages of a group by their rows.

    Args:
        mirrored: the versions of mirrored latents by their dataset, where there are any.
    """
    groups: dict[tuple[Version, ...], int] = {}
    for source in sources:
        groups[source.versions] = groups.get(source.versions, 0) + source.rows
    cache_bytes = (config.workers.cache_mb << 20) // len(groups) // (2 if mirrored else 1)
    pool, disk = reading_threads(), _disk(config, sources, layout, mirrored)
    shared: dict[tuple[Version, ...], tuple[RowGroups, Rows]] = {}

    def rows_of(source: Source, versions: tuple[Version, ...]) -> RowGroups | LanguageRows:
        own_bytes = cache_bytes * source.rows // max(1, groups[source.versions])
        chosen = None if source.language is None else choose(source.versions, source.language)
        if chosen is None or source.language is None or not layout.row_tensors:
            return RowGroups(versions, layout, cache_bytes=own_bytes, chosen=chosen, pool=pool)
        if versions not in shared:
            shared[versions] = RowGroups(versions, layout, cache_bytes=0, pool=pool), {}
        of_all, like = shared[versions]
        return LanguageRows(
            of_all,
            chosen=chosen,
            language=source.language,
            chunk_rows=chunk_rows_of(config, source.rows, groups[source.versions]),
            cache_bytes=own_bytes,
            disk=disk,
            like=like,
            pool=pool,
        )

    found: list[RowsOfPart] = []
    for source in sources:
        plain = rows_of(source, source.versions)
        if mirrored:
            other = rows_of(source, tuple(mirrored[version.ref] for version in source.versions))
            found.append(MirroredRowGroups(plain, other))
        else:
            found.append(plain)
    return found


def _disk(
    config: TrainConfig, sources: Sequence[Source], layout: Layout, mirrored: Mapping[Ref, Version] | None
) -> LanguageChunks | None:
    """Return where this machine keeps the rows of each language, if languages are drawn apart."""
    limit_gb = config.workers.language_disk_gb
    if limit_gb == 0 or not layout.row_tensors or all(source.language is None for source in sources):
        return None
    versions = {version.ref.digest for source in sources for version in source.versions}
    digests = [*versions, *(version.ref.digest for version in (mirrored or {}).values())]
    name = files.sha256_hex(files.canonical_json([layout.kind, layout.columns, sorted(digests)]))
    return LanguageChunks(name, None if limit_gb is None else round(limit_gb * 1e9))


def _bytes(rows: Rows) -> int:
    return sum(tensor.nbytes for tensor in rows.values())


class Loader:
    """Samples of one rank, batch by batch, read by one thread ahead of the loop.

    Args:
        order: defines batch n.
        parts: the rows of each part of the order.
        start, stop: first step, and the one after the last.
        ahead: batches that may wait, which bounds the memory they take.
        skips: batches that are left out (see skips).
        mirrored: returns which of the samples at some positions are mirrored; None mirrors none.
    """

    def __init__(
        self,
        order: Order,
        parts: Sequence[RowsOfPart],
        *,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        stop: int,
        ahead: int = 2,
        skips: Windows = (),
        mirrored: Callable[[I64], Coins] | None = None,
    ) -> None:
        self._skips, self._mirrored = skips, mirrored
        self._order, self._parts = order, list(parts)
        self._rank, self._world, self._start, self._stop = rank, world, start, stop
        self._queue: queue.Queue[Samples | BaseException | None] = queue.Queue(maxsize=ahead)
        self._closed = threading.Event()
        self._coming: deque[tuple[Batch, list[_Piece], list[_Piece]]] = deque()  # being read, the last pieces not yet
        self._known: deque[Batch] = deque()  # the ones after them
        self.waited_s = 0.0
        """Seconds for which the loop has waited for data."""
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Samples]:
        while True:
            began = time.perf_counter()
            item = self._queue.get()
            self.waited_s += time.perf_counter() - began
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        """End the thread and close the files."""
        self._closed.set()
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._queue.get_nowait()
            self._thread.join(timeout=0.05)
        for part in self._parts:
            part.close()

    def _run(self) -> None:
        last: BaseException | None = None
        try:
            for step in range(self._start, self._stop):
                if not self._put(self._read(step)):
                    return
        except BaseException as error:  # raised again in the loop
            last = error
        self._put(last)

    def _put(self, item: Samples | BaseException | None) -> bool:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.2)
                return True
        return False

    def _read(self, step: int) -> Samples:
        while len(self._coming) < LOOKAHEAD and step + len(self._coming) < self._stop:
            if not self._known:
                self._known.extend(self._shares(step + len(self._coming)))
            batch = self._known.popleft()
            pieces = _pieces(batch)
            self._coming.append((batch, pieces, self._begin(batch, pieces)))
        batch, pieces, late = self._coming.popleft()
        self._begin(batch, late)
        tensors = self._parts[int(batch.part[0])].empty(len(batch))  # one shape per batch: see BucketOrder
        coins = self._mirrored(batch.position) if self._mirrored is not None else None
        for number, first, last in pieces:
            part = {name: tensor[first:last] for name, tensor in tensors.items()}
            self._parts[number].gather(batch.row[first:last], part, None if coins is None else coins[first:last])
        number = batch_at(self._skips, step)
        return Samples(step=number, positions=torch.from_numpy(batch.position), tensors=tensors)

    def _begin(self, batch: Batch, pieces: list[_Piece]) -> list[_Piece]:
        """Begin to read what a batch takes; return the pieces for which there is no memory yet."""
        return [piece for piece in pieces if not self._parts[piece[0]].begin(batch.row[piece[1] : piece[2]])]

    def _shares(self, first: int) -> list[Batch]:
        """Return this rank's shares of the batches that the next steps take."""
        steps = range(first, min(first + LOOKAHEAD, self._stop))
        return self._order.shares_of([batch_at(self._skips, step) for step in steps], self._rank, self._world)


def _pieces(batch: Batch) -> list[_Piece]:
    """Return the pieces of a batch, which is sorted by part."""
    firsts = [0, *(np.flatnonzero(batch.part[1:] != batch.part[:-1]) + 1).tolist()]
    ends = [*firsts[1:], len(batch)]
    return list(zip(batch.part[firsts].tolist(), firsts, ends, strict=True))
