"""Which samples make up global batch n: a pure function of (dataset digests, seed, n).

The training stream is an endless sequence of positions 0, 1, 2, ...; global batch n holds the positions
[n B, (n + 1) B). Position p of a part with N rows belongs to epoch p // N, and every epoch holds every row once:

1. Rows are cut into chunks of `chunk_rows` (a row group's worth: what one read brings; only the last may be short).
2. A keyed permutation of the epoch puts the chunks into an order.
3. `window_chunks` chunks that follow each other form a window; a keyed permutation of the window mixes its rows.

Nothing is materialised: any position is answered in constant time, so a resume, another number of workers, or the
question which samples a checkpoint has seen need one integer. What is read at a time is bounded by the window.

Ranks share a batch by row number: the rows of a batch are sorted, and rank r takes the r-th equal slice. Within a
window, then, each rank meets the same few chunks again and again instead of all of them. Who computes a sample does
not change it: its noise is keyed by its position, which travels with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from altdiffusion.training.permutation import I64, derive, key_of, permute

SHARES = 10_000
"""Resolution of mixture weights: each part gets a whole number of every SHARES samples, before reduction."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a mixture draws from: `rows` numbered rows, named by a digest, with a weight among the parts."""

    digest: str
    rows: int
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples, one per element; four int64 arrays of one length."""

    position: I64  # in the training stream: the key of everything that is drawn for the sample
    part: I64
    epoch: I64  # of the part
    row: I64  # within the part

    def __len__(self) -> int:
        return len(self.position)

    def take(self, index: slice | I64) -> Batch:
        """Some of the samples."""
        return Batch(position=self.position[index], part=self.part[index], epoch=self.epoch[index], row=self.row[index])


class PartOrder:
    """The order of one part: draw number -> (epoch, row)."""

    def __init__(self, part: Part, *, seed: int, chunk_rows: int, window_chunks: int) -> None:
        if part.rows < 1 or chunk_rows < 1 or window_chunks < 1:
            raise ValueError("rows, chunk_rows and window_chunks must be positive")
        self.rows, self.chunk_rows, self.window_chunks = part.rows, chunk_rows, window_chunks
        self.chunks = -(-part.rows // chunk_rows)
        self._missing = self.chunks * chunk_rows - part.rows  # rows that the last chunk lacks
        self._chunk_key = key_of(part.digest, seed, "chunks")
        self._window_key = key_of(part.digest, seed, "windows")

    def rows_at(self, draws: I64) -> tuple[I64, I64]:
        """Epoch and row of each draw: int64 [K] -> int64 [K], int64 [K]."""
        epoch, place = draws // self.rows, draws % self.rows
        keys, inverse = np.unique(epoch, return_inverse=True)
        chunk_keys = derive(self._chunk_key, keys)
        # The short chunk's place in its epoch shifts all that follows it.
        last = np.full(keys.shape, self.chunks - 1, dtype=np.int64)
        short_slot = permute(last, self.chunks, chunk_keys, inverse=True)[inverse]

        window = self._padded(place, short_slot) // self.chunk_rows // self.window_chunks
        start = self._window_start(window, short_slot)
        size = self._window_start(window + 1, short_slot) - start
        window_key = derive(derive(self._window_key, epoch), window)
        mixed = start + permute(place - start, size, window_key)

        padded = self._padded(mixed, short_slot)
        chunk = permute(padded // self.chunk_rows, self.chunks, chunk_keys[inverse])
        return epoch, chunk * self.chunk_rows + padded % self.chunk_rows

    def _padded(self, place: I64, short_slot: I64) -> I64:
        """A place in the epoch, counted as if the short chunk were as long as the others."""
        after = place >= (short_slot + 1) * self.chunk_rows - self._missing
        return place + after * self._missing

    def _window_start(self, window: I64, short_slot: I64) -> I64:
        """The place in the epoch at which a window starts."""
        slot = np.minimum(window * self.window_chunks, self.chunks)
        start: I64 = slot * self.chunk_rows - (short_slot < slot) * self._missing
        return start


class Order:
    """The samples of every global batch.

    With several parts, each run of T samples (T: the sum of the whole-number shares that the weights are rounded to)
    holds exactly its share of every part, in an order of its own; each part has its own epochs.
    """

    def __init__(
        self, parts: Sequence[Part], *, seed: int, global_batch: int, chunk_rows: int, window_chunks: int
    ) -> None:
        if not parts or global_batch < 1:
            raise ValueError("an order needs at least one part and a positive batch")
        self.global_batch = global_batch
        self.parts = tuple(parts)
        self.shares = whole_shares([part.weight for part in parts])
        self._orders = [
            PartOrder(part, seed=seed, chunk_rows=chunk_rows, window_chunks=window_chunks) for part in parts
        ]
        self._mixture_key = key_of(*(part.digest for part in parts), seed, "mixture")
        self._starts = np.concatenate(([0], np.cumsum(self.shares)))

    def samples(self, positions: I64) -> Batch:
        """The samples at any positions of the stream, in the given order."""
        part, draw = self._draws(positions)
        epoch, row = np.empty_like(positions), np.empty_like(positions)
        for number, order in enumerate(self._orders):
            chosen = np.flatnonzero(part == number)
            if chosen.size:
                epoch[chosen], row[chosen] = order.rows_at(draw[chosen])
        return Batch(position=positions, part=part, epoch=epoch, row=row)

    def batch(self, n: int) -> Batch:
        """Global batch n, sorted by part and row."""
        first = n * self.global_batch
        found = self.samples(np.arange(first, first + self.global_batch, dtype=np.int64))
        return found.take(np.lexsort((found.position, found.row, found.part)))

    def share(self, n: int, rank: int, world: int) -> Batch:
        """The part of global batch n that one of `world` ranks computes; the batch must divide."""
        if self.global_batch % world:
            raise ValueError(f"a batch of {self.global_batch} does not divide among {world} ranks")
        size = self.global_batch // world
        return self.batch(n).take(slice(rank * size, (rank + 1) * size))

    def epochs(self, batches: int) -> tuple[float, ...]:
        """How many epochs of each part the first batches hold."""
        total, turn = batches * self.global_batch, sum(self.shares)
        counts = [total // turn * share for share in self.shares]
        rest = np.arange(total - total % turn, total, dtype=np.int64)
        left = np.bincount(self._draws(rest)[0], minlength=len(self.parts))
        return tuple((c + int(e)) / p.rows for c, e, p in zip(counts, left, self.parts, strict=True))

    def first_position(self, part: int, epoch: int) -> int:
        """A position before which no sample of that epoch of the part stands, at most one turn too early."""
        return epoch * self.parts[part].rows // self.shares[part] * int(self._starts[-1])

    def _draws(self, positions: I64) -> tuple[I64, I64]:
        """Part of each position, and the number of the draw within the part."""
        turn = int(self._starts[-1])
        if len(self.parts) == 1:
            return np.zeros_like(positions), positions
        block, offset = positions // turn, positions % turn
        mixed = permute(offset, turn, derive(self._mixture_key, block))
        part = np.searchsorted(self._starts, mixed, side="right").astype(np.int64) - 1
        draw = block * np.asarray(self.shares, dtype=np.int64)[part] + mixed - self._starts[part]
        return part, draw


def whole_shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Weights as small whole numbers in almost the same proportion, each at least 1 (largest remainder method)."""
    if any(not math.isfinite(weight) or weight <= 0 for weight in weights):
        raise ValueError("weights must be positive")
    if len(weights) == 1:
        return (1,)
    exact = [weight / math.fsum(weights) * SHARES for weight in weights]
    shares = [max(1, math.floor(share)) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: (shares[i] - exact[i], i))
    for i in by_remainder[: max(0, SHARES - sum(shares))]:
        shares[i] += 1
    divisor = math.gcd(*shares)
    return tuple(share // divisor for share in shares)
