"""Which samples make up global batch n: a pure function of (dataset digests, run key, seed, n).

The training stream is an endless sequence of positions 0, 1, 2, ...; global batch n holds the positions
[n B, (n + 1) B). Position p of a part with N rows belongs to epoch p // N, and every epoch holds every row once:

1. Rows are cut into chunks of `chunk_rows` (a row group's worth: what one read brings; only the last may be short).
2. A keyed permutation of the epoch puts the chunks into an order.
3. `window_chunks` chunks that follow each other form a window; a keyed permutation of the window mixes its rows.

Nothing is materialised: the sample at any position is computed in constant time, so a resume, another number of
workers, or the question which samples a checkpoint has seen need one integer. The window bounds what is read at a time.

Ranks share a batch by row number: the rows of a batch are sorted, and rank r takes the r-th equal slice. Within a
window, then, each rank gets the same few chunks repeatedly instead of all of them. Which rank computes a sample does
not change it: its noise is keyed by its position, which is part of the sample.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from altdiffusion.training.order.permutation import I64, U64, derive, key_of, permute

SHARES = 10_000
"""Resolution of mixture weights: each part gets a whole number of every SHARES samples, before reduction."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a mixture draws from: `rows` numbered rows, named by a digest, with a weight among the parts."""

    digest: str
    rows: int
    weight: float = 1.0
    chunk_rows: int | None = None
    """Replaces the order's value, for a part with fewer rows per row group because other rows are between them."""


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
        """Return some of the samples."""
        return Batch(position=self.position[index], part=self.part[index], epoch=self.epoch[index], row=self.row[index])


CHUNK = 1 << 20
"""Samples that are enumerated at a time."""


class PartOrders:
    """The orders of all parts: part and draw number -> (epoch, row). Many parts cost what one does."""

    def __init__(self, parts: Sequence[Part], *, seed: int, chunk_rows: int, window_chunks: int) -> None:
        self.rows = np.array([part.rows for part in parts], dtype=np.int64)
        self.chunk_rows = np.array([part.chunk_rows or chunk_rows for part in parts], dtype=np.int64)
        self.window_chunks = window_chunks
        if self.rows.min() < 1 or self.chunk_rows.min() < 1 or window_chunks < 1:
            raise ValueError("rows, chunk_rows and window_chunks must be positive")
        self.chunks = -(-self.rows // self.chunk_rows)
        self._missing = self.chunks * self.chunk_rows - self.rows  # rows that the last chunk lacks
        self._chunk_keys = np.array([key_of(part.digest, seed, "chunks") for part in parts], dtype=np.uint64)
        self._window_keys = np.array([key_of(part.digest, seed, "windows") for part in parts], dtype=np.uint64)

    def rows_at(self, part: I64, draws: I64) -> tuple[I64, I64]:
        """Return epoch and row of each draw of a part: int64 [K], int64 [K] -> int64 [K], int64 [K]."""
        epoch, place = draws // self.rows[part], draws % self.rows[part]
        chunk_keys, short_slot = self._chunks_of(part, epoch)

        window = self._padded(part, place, short_slot) // self.chunk_rows[part] // self.window_chunks
        start = self._window_start(part, window, short_slot)
        size = self._window_start(part, window + 1, short_slot) - start
        window_key = derive(derive(self._window_keys[part], epoch), window)
        mixed = start + permute(place - start, size, window_key)

        padded = self._padded(part, mixed, short_slot)
        chunk = permute(padded // self.chunk_rows[part], self.chunks[part], chunk_keys)
        return epoch, chunk * self.chunk_rows[part] + padded % self.chunk_rows[part]

    def draws_of(self, part: I64, rows: I64, epoch: I64) -> I64:
        """Return the draw that takes each row of a part in an epoch, the inverse of `rows_at`: int64 [K] each."""
        chunk_keys, short_slot = self._chunks_of(part, epoch)

        chunk_rows = self.chunk_rows[part]
        slot = permute(rows // chunk_rows, self.chunks[part], chunk_keys, inverse=True)
        mixed = slot * chunk_rows + rows % chunk_rows - (slot > short_slot) * self._missing[part]
        window = slot // self.window_chunks
        start = self._window_start(part, window, short_slot)
        size = self._window_start(part, window + 1, short_slot) - start
        window_key = derive(derive(self._window_keys[part], epoch), window)
        found: I64 = epoch * self.rows[part] + start + permute(mixed - start, size, window_key, inverse=True)
        return found

    def _chunks_of(self, part: I64, epoch: I64) -> tuple[U64, I64]:
        """Return the key of each epoch's chunks, and the place of its short chunk, which shifts all that follows it."""
        by_epoch = np.lexsort((epoch, part))
        first = np.ones(len(by_epoch), dtype=bool)
        first[1:] = (np.diff(part[by_epoch]) != 0) | (np.diff(epoch[by_epoch]) != 0)
        each = by_epoch[first]  # a draw of each epoch of each part
        inverse = np.empty_like(by_epoch)
        inverse[by_epoch] = np.cumsum(first) - 1
        keys = derive(self._chunk_keys[part[each]], epoch[each])
        chunks = self.chunks[part[each]]
        return keys[inverse], permute(chunks - 1, chunks, keys, inverse=True)[inverse]

    def _padded(self, part: I64, place: I64, short_slot: I64) -> I64:
        """Return places in the epoch, counted as if the short chunk were as long as the others."""
        missing = self._missing[part]
        after = place >= (short_slot + 1) * self.chunk_rows[part] - missing
        return place + after * missing

    def _window_start(self, part: I64, window: I64, short_slot: I64) -> I64:
        """Return the places in the epoch at which windows start."""
        slot = np.minimum(window * self.window_chunks, self.chunks[part])
        start: I64 = slot * self.chunk_rows[part] - (short_slot < slot) * self._missing[part]
        return start


class Mixture:
    """Assigns each item of an endless sequence to a part, and numbers the items of each part.

    Each turn of T items (T: the sum of the whole-number shares that the weights are rounded to) holds exactly its share
    of every part, at places of its own. Along the sequence the draws of a part are 0, 1, 2, ...: so its first E N items
    are E whole epochs of its N rows, however small N is compared with its share.

    Args:
        weights: the weights of the parts.
        key: the key of the places.
        mixed_draws: the draws of a part come in another order within each turn instead (run key of format 1), so that
            whole turns hold whole ranges of draws, and nothing shorter does.
    """

    def __init__(self, weights: Sequence[float], key: np.uint64, *, mixed_draws: bool = False) -> None:
        self.shares = whole_shares(weights)
        self.turn = sum(self.shares)
        self._key = key
        self._mixed_draws = mixed_draws
        self._starts = np.concatenate(([0], np.cumsum(self.shares)))
        none = np.empty(0, dtype=np.int64)
        self._kept: tuple[I64, I64, I64] = (none, none.reshape(0, 1), none.reshape(0, 1))

    def draws(self, items: I64) -> tuple[I64, I64]:
        """Return the part of each item, and its draw's number within the part: int64 [K] -> int64 [K], int64 [K]."""
        if len(self.shares) == 1:
            return np.zeros_like(items), items
        block, offset = items // self.turn, items % self.turn
        if self._mixed_draws:
            mixed = permute(offset, self.turn, derive(self._key, block))
            part = self._part_of(mixed)
            return part, block * np.asarray(self.shares, dtype=np.int64)[part] + mixed - self._starts[part]
        part, draw = np.empty_like(items), np.empty_like(items)
        order = np.argsort(block, kind="stable")
        some = max(1, CHUNK // self.turn)
        numbers, firsts = np.unique(block[order], return_index=True)
        ends = np.append(firsts[1:], len(items))
        for start in range(0, len(numbers), some):
            wanted = numbers[start : start + some]
            chosen = order[firsts[start] : ends[min(start + some, len(numbers)) - 1]]
            kept, parts, ranks = self._turns(wanted)
            row = np.searchsorted(kept, block[chosen])
            part[chosen], draw[chosen] = parts[row, offset[chosen]], ranks[row, offset[chosen]]
        return part, draw + block * np.asarray(self.shares, dtype=np.int64)[part]

    def items_of(self, part: int, draws: I64) -> I64:
        """Return the item that is each draw of a part, the inverse of `draws`: int64 [K] -> int64 [K].

        The places of a part in a turn are found by permuting back its share of the turn's numbers.
        """
        if len(self.shares) == 1:
            return draws
        share, first = self.shares[part], int(self._starts[part])
        block, rank = draws // share, draws % share
        if self._mixed_draws:
            found: I64 = block * self.turn + permute(first + rank, self.turn, derive(self._key, block), inverse=True)
            return found
        numbers, row = np.unique(block, return_inverse=True)
        mine = first + np.arange(share, dtype=np.int64)
        item, some = np.empty_like(draws), max(1, CHUNK // share)
        for start in range(0, len(numbers), some):
            keys = np.repeat(derive(self._key, numbers[start : start + some]), share)
            mixed = np.tile(mine, len(keys) // share)
            places = np.sort(permute(mixed, self.turn, keys, inverse=True).reshape(-1, share), axis=1)
            chosen = np.flatnonzero((row >= start) & (row < start + some))
            item[chosen] = places[row[chosen] - start, rank[chosen]]
        return item + block * self.turn

    def _turns(self, numbers: I64) -> tuple[I64, I64, I64]:
        """Return turns, among them these [U] in ascending order: their numbers [V], the part of each of their items,
        and how many items of that part come before it in its turn (int64 [V, T] each).

        The turns of the last call are kept: batches follow each other, and most are shorter than a turn.
        """
        kept = self._kept
        if not np.isin(numbers, kept[0]).all():
            places = np.broadcast_to(np.arange(self.turn, dtype=np.int64), (len(numbers), self.turn))
            keys = np.repeat(derive(self._key, numbers), self.turn)
            part = self._part_of(permute(places.reshape(-1), self.turn, keys)).reshape(places.shape)
            rank = np.empty_like(part)
            # A stable sort by part puts each part's items in a row, in their own sequence.
            before = places - np.repeat(self._starts[:-1], self.shares)
            np.put_along_axis(rank, np.argsort(part, axis=1, kind="stable"), before, axis=1)
            self._kept = kept = (numbers, part, rank)
        return kept

    def _part_of(self, mixed: I64) -> I64:
        found: I64 = np.searchsorted(self._starts, mixed, side="right").astype(np.int64) - 1
        return found

    def counts(self, items: int) -> list[int]:
        """Return how many of the first items belong to each part."""
        rest = np.arange(items - items % self.turn, items, dtype=np.int64)
        left = np.bincount(self.draws(rest)[0], minlength=len(self.shares))
        return [items // self.turn * share + int(e) for share, e in zip(self.shares, left, strict=True)]


class Order:
    """The samples of every global batch: parts are mixed sample by sample, and each part has its own epochs."""

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        seed: int,
        global_batch: int,
        chunk_rows: int,
        window_chunks: int,
        mixed_draws: bool = False,
    ) -> None:
        if not parts or global_batch < 1:
            raise ValueError("an order needs at least one part and a positive batch")
        self.global_batch = global_batch
        self.parts = tuple(parts)
        self._mixture = Mixture(
            [part.weight for part in parts],
            key_of(*(part.digest for part in parts), seed, "mixture"),
            mixed_draws=mixed_draws,
        )
        self._orders = PartOrders(parts, seed=seed, chunk_rows=chunk_rows, window_chunks=window_chunks)

    @property
    def shares(self) -> tuple[int, ...]:
        """Return whole numbers in whose proportion the parts are drawn."""
        return self._mixture.shares

    def samples(self, positions: I64) -> Batch:
        """Return the samples at any positions of the stream, in the given order."""
        part, draw = self._mixture.draws(positions)
        epoch, row = self._orders.rows_at(part, draw)
        return Batch(position=positions, part=part, epoch=epoch, row=row)

    def positions_of(self, part: int, rows: I64, epoch: I64) -> I64:
        """Return the position at which each row of a part is drawn in an epoch of the part, the inverse of `samples`.

        Args:
            part: number of the part.
            rows: int64 [K], each below the part's rows.
            epoch: int64 [K].

        Returns:
            int64 [K].
        """
        return self._mixture.items_of(part, self._orders.draws_of(np.full_like(rows, part), rows, epoch))

    def epochs_begun(self, part: int, positions: int) -> int:
        """Return a number of epochs of a part, beyond which none of the first positions is: the turn that was begun
        counts as a whole, since its draws may be in any sequence."""
        turns = -(-positions // self._mixture.turn)
        return -(-turns * self.shares[part] // self.parts[part].rows)

    def draws_of(self, part: int, rows: I64, positions: int) -> Iterator[tuple[I64, I64]]:
        """Yield every draw of some rows of a part among the first positions of the stream.

        Args:
            part: number of the part.
            rows: int64 [K], each below the part's rows.
            positions: number of positions.

        Yields:
            Indices into `rows`, and positions: int64 [J] each, in no particular sequence.
        """
        for pairs in _ranges(0, len(rows) * self.epochs_begun(part, positions)):
            index = pairs % len(rows)
            found = self.positions_of(part, rows[index], pairs // len(rows))
            inside = found < positions
            yield index[inside], found[inside]

    def batch(self, n: int) -> Batch:
        """Return global batch n, sorted by part and row."""
        return self.batches([n])[0]

    def batches(self, numbers: Sequence[int]) -> list[Batch]:
        """Return global batches, each as `batch` does. With many parts, several batches cost little more than one."""
        firsts = np.asarray(numbers, dtype=np.int64)[:, None] * self.global_batch
        found = self.samples((firsts + np.arange(self.global_batch, dtype=np.int64)).reshape(-1))
        result = []
        for first in range(0, len(found), self.global_batch):
            one = found.take(slice(first, first + self.global_batch))
            result.append(one.take(np.lexsort((one.position, one.row, one.part))))
        return result

    def share(self, n: int, rank: int, world: int) -> Batch:
        """Return the part of global batch n that one of `world` ranks computes; the batch must divide."""
        return self.shares_of([n], rank, world)[0]

    def shares_of(self, numbers: Sequence[int], rank: int, world: int) -> list[Batch]:
        """Return the same for several global batches."""
        if self.global_batch % world:
            raise ValueError(f"a batch of {self.global_batch} does not divide among {world} ranks")
        size = self.global_batch // world
        return [batch.take(slice(rank * size, (rank + 1) * size)) for batch in self.batches(numbers)]

    def drawn(self, batches: int) -> list[int]:
        """Return how many samples of each part the first batches hold."""
        return self._mixture.counts(batches * self.global_batch)

    def drawn_in(self, batches: I64) -> list[int]:
        """Return the same for the batches with these numbers."""
        if len(self.parts) == 1:
            return [len(batches) * self.global_batch]
        counts, some = np.zeros(len(self.parts), np.int64), max(1, CHUNK // self.global_batch)
        for first in range(0, len(batches), some):
            starts = batches[first : first + some, None] * self.global_batch
            positions = (starts + np.arange(self.global_batch)).reshape(-1)
            counts += np.bincount(self._mixture.draws(positions)[0], minlength=len(counts))
        return [int(count) for count in counts]

    def epochs(self, batches: int) -> tuple[float, ...]:
        """Return how many epochs of each part the first batches hold."""
        return tuple(count / part.rows for count, part in zip(self.drawn(batches), self.parts, strict=True))

    def times(self, batches: int) -> list[I64]:
        """Return how often each row of each part is in the first batches: int64 [rows] per part.

        Whole turns of the mixture hold the first draws of every part, without gaps: there whole epochs count each row
        once, and only the epoch that was begun is enumerated. The turn that was begun is enumerated as it is.
        """
        total = batches * self.global_batch
        turns = total // self._mixture.turn
        found = []
        for number, (part, share) in enumerate(zip(self.parts, self.shares, strict=True)):
            whole = turns * share // part.rows
            times = np.full(part.rows, whole, dtype=np.int64)
            for draws in _ranges(whole * part.rows, turns * share):
                row = self._orders.rows_at(np.full_like(draws, number), draws)[1]
                times += np.bincount(row, minlength=part.rows)
            found.append(times)
        for positions in _ranges(turns * self._mixture.turn, total):
            _count(self.samples(positions), found)
        return found


class BucketOrder(Order):
    """An order whose every global batch comes from one bucket: rows of one shape, so that they fit one tensor.

    Buckets are drawn batch by batch in shares of their weights, as an `Order` draws samples; a bucket's own order
    defines the samples of its j-th batch. Each part of each bucket keeps its own exact epochs.

    Args:
        buckets: the order of each bucket, with one global batch; `parts` are theirs, in sequence.
        weights: the weights of the buckets.
        mixed_draws: see `Mixture`.
    """

    def __init__(
        self, buckets: Sequence[Order], weights: Sequence[float], *, seed: int, mixed_draws: bool = False
    ) -> None:
        if not buckets or len({bucket.global_batch for bucket in buckets}) != 1:
            raise ValueError("an order of buckets needs at least one, all of one batch")
        self.global_batch = buckets[0].global_batch
        self.parts = tuple(part for bucket in buckets for part in bucket.parts)
        self._buckets = tuple(buckets)
        self._first_part = np.cumsum([0, *(len(bucket.parts) for bucket in buckets)]).tolist()
        self._mixture = Mixture(
            weights, key_of(*(part.digest for part in self.parts), seed, "buckets"), mixed_draws=mixed_draws
        )

    def samples(self, positions: I64) -> Batch:
        bucket, batch = self._mixture.draws(positions // self.global_batch)
        within = batch * self.global_batch + positions % self.global_batch
        part, epoch, row = (np.empty_like(positions) for _ in range(3))
        for number, order in enumerate(self._buckets):
            chosen = np.flatnonzero(bucket == number)
            if chosen.size:
                found = order.samples(within[chosen])
                part[chosen] = found.part + self._first_part[number]
                epoch[chosen], row[chosen] = found.epoch, found.row
        return Batch(position=positions, part=part, epoch=epoch, row=row)

    def positions_of(self, part: int, rows: I64, epoch: I64) -> I64:
        bucket, within = self._bucket_of(part)
        found = self._buckets[bucket].positions_of(within, rows, epoch)
        batch = self._mixture.items_of(bucket, found // self.global_batch)
        return batch * self.global_batch + found % self.global_batch

    def epochs_begun(self, part: int, positions: int) -> int:
        bucket, within = self._bucket_of(part)
        turns = -(-positions // (self._mixture.turn * self.global_batch))
        batches = turns * self.shares[bucket]
        return self._buckets[bucket].epochs_begun(within, batches * self.global_batch)

    def _bucket_of(self, part: int) -> tuple[int, int]:
        """Return the bucket that has a part, and the part's number there."""
        bucket = bisect.bisect_right(self._first_part, part) - 1
        return bucket, part - int(self._first_part[bucket])

    def drawn(self, batches: int) -> list[int]:
        turns, turn = batches // self._mixture.turn, self._mixture.turn
        # With mixed draws, the turn that was begun holds some of a bucket's next batches, not the first of them.
        bucket, begun = self._mixture.draws(np.arange(turns * turn, batches, dtype=np.int64))
        return [
            whole + rest
            for number, (order, share) in enumerate(zip(self._buckets, self.shares, strict=True))
            for whole, rest in zip(order.drawn(turns * share), order.drawn_in(begun[bucket == number]), strict=True)
        ]

    def times(self, batches: int) -> list[I64]:
        turns, turn = batches // self._mixture.turn, self._mixture.turn
        found = [
            times
            for order, share in zip(self._buckets, self.shares, strict=True)
            for times in order.times(turns * share)
        ]
        for positions in _ranges(turns * turn * self.global_batch, batches * self.global_batch):
            _count(self.samples(positions), found)
        return found


def _ranges(start: int, stop: int) -> Iterator[I64]:
    """Yield the numbers start .. stop - 1, CHUNK at a time."""
    for first in range(start, stop, CHUNK):
        yield np.arange(first, min(first + CHUNK, stop), dtype=np.int64)


def _count(batch: Batch, times: list[I64]) -> None:
    """Add samples to the counts of their rows."""
    for number, counts in enumerate(times):
        counts += np.bincount(batch.row[batch.part == number], minlength=len(counts))


def whole_shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Return weights as small whole numbers in almost the same proportion, each at least 1 (largest remainder
    method)."""
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
