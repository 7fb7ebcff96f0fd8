"""Reads the samples of a batch: row groups of latents, kept in a bounded cache, one thread ahead of the loop.

A dataset version is a sequence of Parquet shards; a part of the training mixture is one version, or several in a row.
A row number is found in its row group by one binary search, a row group is decoded as a whole without a look at
single rows, and a batch is gathered with one index operation for each row group it touches.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Version
from altdiffusion.storage.shards import REMEDY
from altdiffusion.training.order import Batch, Order
from altdiffusion.training.permutation import I64

COLUMNS = ("latent", "channels", "height", "width", "token_ids")
OPEN_FILES = 16


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What the loop needs of some samples; all tensors in host memory, one element or row per sample."""

    step: int
    """Number of the global batch."""
    positions: Tensor
    """int64 [B]: key of everything that is drawn for the sample."""
    latents: Tensor
    """float16 [B, C, H, W], scaled."""
    token_ids: Tensor
    """int64 [B, T]."""

    def micro(self, size: int) -> Iterator[Samples]:
        """The same in pieces of `size`."""
        for start in range(0, len(self.positions), size):
            piece = slice(start, start + size)
            yield Samples(
                step=self.step,
                positions=self.positions[piece],
                latents=self.latents[piece],
                token_ids=self.token_ids[piece],
            )


class RowGroups:
    """All rows of some versions, numbered in sequence, read by row group.

    Args:
        versions: of kind `latents`, all with one latent shape and one number of tokens.
        cache_bytes: memory for decoded row groups; the one that was used longest ago goes first.
    """

    def __init__(self, versions: Sequence[Version], *, cache_bytes: int) -> None:
        self._files: list[tuple[Version, int]] = []
        starts: list[int] = [0]
        shard_of: list[int] = []
        group_of: list[int] = []
        for version in versions:
            if version.manifest.kind != "latents":
                raise AltDiffusionError(
                    f"dataset {version.ref.short}",
                    f"holds {version.manifest.kind}, not latents",
                    "name the dataset that the encode job wrote",
                )
            if version.rows == 0:
                raise AltDiffusionError(
                    f"dataset {version.ref.short}",
                    "holds no rows",
                    "look at its rejects by reason, then curate again",
                )
            for number, shard in enumerate(version.shards):
                for group, first in enumerate(range(0, shard.rows, shard.row_group_rows)):
                    starts.append(starts[-1] + min(shard.row_group_rows, shard.rows - first))
                    shard_of.append(len(self._files))
                    group_of.append(group)
                self._files.append((version, number))
        self._starts = np.asarray(starts, dtype=np.int64)
        self._shard_of, self._group_of = shard_of, group_of
        self._cache: OrderedDict[int, tuple[Tensor, Tensor]] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._open: OrderedDict[int, tuple[Any, Any]] = OrderedDict()
        self.cached_bytes = 0
        self.groups_read = 0

    @property
    def rows(self) -> int:
        return int(self._starts[-1])

    def shape(self) -> tuple[tuple[int, int, int], int]:
        """((C, H, W), T) of the first row group."""
        latents, token_ids = self._group(0)
        c, h, w = latents.shape[1:]
        return (c, h, w), token_ids.shape[1]

    def gather(self, rows: I64, latents: Tensor, token_ids: Tensor) -> None:
        """Writes the samples of `rows` (any order) into float16 [K, C, H, W] and int64 [K, T]."""
        group = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(group).tolist():
            places = np.flatnonzero(group == number)
            index = torch.from_numpy(rows[places] - self._starts[number])
            here = torch.from_numpy(places)
            group_latents, group_ids = self._group(number)
            if group_latents.shape[1:] != latents.shape[1:] or group_ids.shape[1:] != token_ids.shape[1:]:
                version, _ = self._files[self._shard_of[number]]
                raise AltDiffusionError(
                    f"dataset {version.ref.short}",
                    f"mixes latents {tuple(group_latents.shape[1:])} of {group_ids.shape[1]} tokens with "
                    f"{tuple(latents.shape[1:])} of {token_ids.shape[1]}",
                    "train on datasets of one resolution and one tokenizer",
                )
            latents.index_copy_(0, here, group_latents.index_select(0, index))
            token_ids.index_copy_(0, here, group_ids.index_select(0, index).to(torch.int64))

    def close(self) -> None:
        """Closes the open shards."""
        while self._open:
            self._open.popitem()[1][1].close()

    def _group(self, number: int) -> tuple[Tensor, Tensor]:
        found = self._cache.get(number)
        if found is not None:
            self._cache.move_to_end(number)
            return found
        found = self._read(number)
        self.groups_read += 1
        self.cached_bytes += sum(tensor.nbytes for tensor in found)
        self._cache[number] = found
        while self.cached_bytes > self._cache_bytes and len(self._cache) > 1:
            _, old = self._cache.popitem(last=False)
            self.cached_bytes -= sum(tensor.nbytes for tensor in old)
        return found

    def _read(self, number: int) -> tuple[Tensor, Tensor]:
        version, shard = self._files[self._shard_of[number]]
        uri = version.shard_uri(shard)
        try:
            file = self._parquet(self._shard_of[number], uri, version.shards[shard].bytes)
            table = file.read_row_group(self._group_of[number], columns=list(COLUMNS))
            return decode(table)
        except FileNotFoundError as error:
            raise AltDiffusionError(f"shard {uri}", "is missing", REMEDY) from error
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise AltDiffusionError(f"shard {uri}", f"is damaged ({_first_line(error)})", REMEDY) from error

    def _parquet(self, number: int, uri: str, size: int) -> Any:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number][0]
        fs, path = files.filesystem(uri)
        if fs.size(path) != size:
            raise ValueError(f"it has {fs.size(path)} bytes instead of {size}")
        handle = fs.open(path, "rb")
        self._open[number] = (pq.ParquetFile(handle, page_checksum_verification=True), handle)
        if len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)[1][1].close()
        return self._open[number][0]


def decode(table: pa.Table) -> tuple[Tensor, Tensor]:
    """Latents float16 [R, C, H, W] and token ids int32 [R, T] of a row group, without a loop over rows.

    Raises:
        ValueError: rows differ in shape or in number of tokens, or a value is null.
    """
    shape = []
    for name in ("channels", "height", "width"):
        values = table.column(name).to_numpy()
        if (values != values[0]).any():
            raise ValueError(f"column {name} differs between rows")
        shape.append(int(values[0]))
    rows = table.num_rows
    latent = _one_array(table, "latent")
    raw = np.frombuffer(latent.buffers()[2], dtype=np.uint8)
    start = _check_lengths(latent, "latent", 2 * shape[0] * shape[1] * shape[2])
    latents = raw[start : start + rows * 2 * shape[0] * shape[1] * shape[2]].view("<f2").reshape(rows, *shape)
    ids = _one_array(table, "token_ids")
    length = len(ids[0])
    _check_lengths(ids, "token_ids", length)
    token_ids = ids.flatten().to_numpy(zero_copy_only=False).reshape(rows, length)
    return torch.from_numpy(latents.copy()), torch.from_numpy(token_ids.astype(np.int32))


def _one_array(table: pa.Table, name: str) -> Any:
    array = table.column(name).combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0)
    if array.null_count:
        raise ValueError(f"column {name} holds nulls")
    return array


def _check_lengths(array: Any, name: str, length: int) -> int:
    """Checks that every value has that many items; returns the first one's offset."""
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int32)[array.offset : array.offset + len(array) + 1]
    if (np.diff(offsets) != length).any():
        raise ValueError(f"column {name} does not hold {length} items in every row")
    return int(offsets[0])


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


class Loader:
    """Samples of one rank, batch by batch, read by one thread ahead of the loop.

    Args:
        order: what batch n is.
        parts: the rows of each part of the order.
        start, stop: first batch, and the one after the last.
        ahead: batches that may wait; the memory they take is bounded by it.
    """

    def __init__(
        self,
        order: Order,
        parts: Sequence[RowGroups],
        *,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        stop: int,
        ahead: int = 2,
    ) -> None:
        self._order, self._parts = order, list(parts)
        self._rank, self._world, self._start, self._stop = rank, world, start, stop
        self._queue: queue.Queue[Samples | BaseException | None] = queue.Queue(maxsize=ahead)
        self._closed = threading.Event()
        self._shape, self._tokens = self._parts[0].shape()
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
        """Ends the thread and closes the files."""
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
        except BaseException as error:  # it is raised again in the loop
            last = error
        self._put(last)

    def _put(self, item: Samples | BaseException | None) -> bool:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.2)
                return True
        return False

    def _read(self, step: int) -> Samples:
        batch: Batch = self._order.share(step, self._rank, self._world)
        latents = torch.empty((len(batch), *self._shape), dtype=torch.float16)
        token_ids = torch.empty((len(batch), self._tokens), dtype=torch.int64)
        for number, part in enumerate(self._parts):
            places = np.flatnonzero(batch.part == number)
            if not places.size:
                continue
            first, last = int(places[0]), int(places[-1]) + 1  # a batch is sorted by part
            part.gather(batch.row[first:last], latents[first:last], token_ids[first:last])
        return Samples(step=step, positions=torch.from_numpy(batch.position), latents=latents, token_ids=token_ids)
