"""Batch n as a pure function: exact epochs, independence of workers, resume from anywhere, a fair shuffle."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altdiffusion.training.order.batches import BucketOrder, Mixture, Order, Part, whole_shares
from altdiffusion.training.order.permutation import derive, key_of, permute

sizes = st.integers(1, 700)


def order_of(rows: int, chunk: int, window: int, batch: int, seed: int = 3, digest: str = "d") -> Order:
    return Order(
        [Part(digest=digest, rows=rows)], seed=seed, global_batch=batch, chunk_rows=chunk, window_chunks=window
    )


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_a_permutation_is_a_bijection_and_inverts(n: int, key: int) -> None:
    x = np.arange(n, dtype=np.int64)
    y = permute(x, n, np.uint64(key))
    assert np.array_equal(np.sort(y), x)
    assert np.array_equal(permute(y, n, np.uint64(key), inverse=True), x)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2**40, 2**62), data=st.data())
def test_a_permutation_of_a_huge_range_inverts(n: int, data: st.DataObject) -> None:
    x = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20)), dtype=np.int64)
    y = permute(x, n, np.uint64(7))
    assert ((y >= 0) & (y < n)).all()
    assert np.array_equal(permute(y, n, np.uint64(7), inverse=True), x)


def test_elements_may_have_their_own_size_and_key() -> None:
    n = np.array([5, 900, 1, 64], dtype=np.int64)
    keys = derive(key_of("k"), np.arange(4))
    together = permute(np.array([3, 17, 0, 63]), n, keys)
    alone = [int(permute(np.array([x]), int(m), k)[0]) for x, m, k in zip([3, 17, 0, 63], n, keys, strict=True)]
    assert together.tolist() == alone


def test_a_value_outside_of_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        permute(np.array([5]), 5, np.uint64(0))


@pytest.mark.parametrize("n", [3, 10, 37])
def test_permutations_are_uniform_over_keys(n: int) -> None:
    """Chi-square over (from, to): every value goes everywhere equally often."""
    trials = 6000
    counts = np.zeros((n, n))
    keys = derive(key_of("uniform"), np.arange(trials))
    for x in range(n):
        y = permute(np.full(trials, x), n, keys)
        counts[x] = np.bincount(y, minlength=n)
    expected = trials / n
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    freedom = (n - 1) ** 2
    assert abs(chi_square - freedom) < 6 * math.sqrt(2 * freedom)


@settings(max_examples=60, deadline=None)
@given(
    rows=sizes,
    chunk=st.integers(1, 90),
    window=st.integers(1, 9),
    batch=st.integers(1, 64),
    epoch=st.integers(0, 3),
)
def test_each_sample_once_per_epoch(rows: int, chunk: int, window: int, batch: int, epoch: int) -> None:
    order = order_of(rows, chunk, window, batch)
    found = order.samples(np.arange(epoch * rows, (epoch + 1) * rows, dtype=np.int64))
    assert (found.epoch == epoch).all()
    assert np.array_equal(np.sort(found.row), np.arange(rows))


@settings(max_examples=40, deadline=None)
@given(rows=sizes, chunk=st.integers(1, 90), window=st.integers(1, 9), n=st.integers(0, 10_000), data=st.data())
def test_independent_of_the_number_of_workers(rows: int, chunk: int, window: int, n: int, data: st.DataObject) -> None:
    world = data.draw(st.sampled_from([1, 2, 3, 4, 6, 8]))
    batch = 24 * data.draw(st.integers(1, 3))
    order = order_of(rows, chunk, window, batch)
    whole = order.batch(n)
    shares = [order.share(n, rank, world) for rank in range(world)]
    assert sorted(np.concatenate([s.position for s in shares])) == list(range(n * batch, (n + 1) * batch))
    assert np.array_equal(np.concatenate([s.row for s in shares]), whole.row)
    by_position = dict(zip(whole.position.tolist(), whole.row.tolist(), strict=True))
    again = order.samples(np.arange(n * batch, (n + 1) * batch))
    assert [by_position[p] for p in again.position.tolist()] == again.row.tolist()


@settings(max_examples=25, deadline=None)
@given(rows=sizes, start=st.integers(0, 50))
def test_any_batch_without_the_ones_before(rows: int, start: int) -> None:
    in_sequence = [order_of(rows, 16, 4, 12).batch(n).row.tolist() for n in range(start + 3)]
    fresh = order_of(rows, 16, 4, 12)
    assert [fresh.batch(n).row.tolist() for n in range(start, start + 3)] == in_sequence[start:]


@pytest.mark.parametrize("change", [{"seed": 4}, {"digest": "other"}])
def test_seed_and_digest_decide(change: dict[str, object]) -> None:
    base = order_of(1000, 64, 4, 100)
    other = order_of(1000, 64, 4, 100, **change)  # type: ignore[arg-type]
    positions = np.arange(1000)
    assert (base.samples(positions).row == other.samples(positions).row).mean() < 0.02


def test_epochs_have_different_orders() -> None:
    order = order_of(1000, 64, 4, 100)
    first, second = order.samples(np.arange(1000)), order.samples(np.arange(1000, 2000))
    assert (first.row == second.row).mean() < 0.02


def test_a_window_bounds_what_is_read() -> None:
    """All rows drawn within one window come from its chunks: that is what bounds the reader's memory."""
    order = order_of(64 * 40, 64, 5, 64)
    found = order.samples(np.arange(64 * 40))
    for window in range(8):
        chunks = np.unique(found.row[window * 320 : (window + 1) * 320] // 64)
        assert len(chunks) == 5


def test_ranks_keep_to_their_chunks_within_a_window() -> None:
    world, order = 8, order_of(64 * 64, 64, 16, 256)
    mine: set[int] = set()
    for n in range(4):  # the first window: 1024 rows of 16 chunks
        mine |= set((order.share(n, 3, world).row // 64).tolist())
    assert len(mine) <= 6  # 2 of 16 would be the least; all 16 is what a random share reads


def test_the_shuffle_mixes_within_the_window_and_across_epochs() -> None:
    """Neighbours in the dataset are not likelier than any pair to meet in a batch, when the window is the dataset.

    A shuffle of shards alone (chunks in random order, rows in sequence) fails this: batches are runs of neighbours.
    """
    rows, batch, epochs = 2048, 64, 20
    order = order_of(rows, 64, 32, batch)
    together = 0
    for n in range(epochs * rows // batch):
        together += int((np.diff(np.sort(order.batch(n).row)) == 1).sum())
    expected = epochs * (rows - 1) * (batch - 1) / (rows - 1)  # pairs of neighbours x chance to share a batch
    assert abs(together - expected) < 6 * math.sqrt(expected)


def test_rows_are_spread_evenly_over_the_epoch() -> None:
    """Over many seeds, each row's place in the epoch is uniform, with small windows too."""
    rows, trials = 96, 1500
    counts = np.zeros((rows, rows))
    for seed in range(trials):
        found = order_of(rows, 8, 3, 8, seed=seed).samples(np.arange(rows))
        counts[found.row, np.arange(rows)] += 1
    expected = trials / rows
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    freedom = (rows - 1) ** 2
    assert abs(chi_square - freedom) < 8 * math.sqrt(2 * freedom)


@settings(max_examples=30, deadline=None)
@given(weights=st.lists(st.floats(0.01, 100), min_size=2, max_size=4), n=st.integers(0, 5))
def test_a_mixture_keeps_its_shares_and_each_parts_epochs(weights: list[float], n: int) -> None:
    rows = [50 + 13 * i for i in range(len(weights))]
    order = Order(
        [Part(digest=str(i), rows=r, weight=w) for i, (r, w) in enumerate(zip(rows, weights, strict=True))],
        seed=1,
        global_batch=8,
        chunk_rows=16,
        window_chunks=3,
    )
    turn = sum(order.shares)
    found = order.samples(np.arange(n * turn, (n + 1) * turn))
    assert np.bincount(found.part, minlength=len(rows)).tolist() == list(order.shares)
    seen = order.samples(np.arange((n + 1) * turn))
    for part, size in enumerate(rows):
        mine = seen.row[seen.part == part]
        times = np.bincount(mine, minlength=size)
        assert times.max() - times.min() <= 1


def test_epochs_are_counted_exactly() -> None:
    order = Order(
        [Part(digest="a", rows=100, weight=3), Part(digest="b", rows=10, weight=1)],
        seed=1,
        global_batch=10,
        chunk_rows=16,
        window_chunks=3,
    )
    seen = order.samples(np.arange(130))
    expected = tuple((seen.part == i).sum() / r for i, r in ((0, 100), (1, 10)))
    assert order.epochs(13) == pytest.approx(expected)
    assert order.epochs(40) == pytest.approx((3.0, 10.0))


def test_whole_shares() -> None:
    assert whole_shares([5]) == (1,)
    assert whole_shares([0.5, 0.25, 0.25]) == (2, 1, 1)
    assert whole_shares([1, 1e-9])[1] == 1
    with pytest.raises(ValueError, match="positive"):
        whole_shares([1, 0])


def test_billions_of_rows_cost_nothing() -> None:
    order = order_of(4_120_000_000, 1024, 64, 3072)
    batch = order.batch(329_999)
    assert len(np.unique(batch.row)) == 3072
    assert len(np.unique(batch.row // 1024)) <= 64 * 2


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.integers(1, 90), min_size=2, max_size=4),
    weights=st.lists(st.floats(0.01, 100), min_size=4, max_size=4),
    chunk_rows=st.integers(1, 40),
    window_chunks=st.integers(1, 6),
    epochs=st.integers(1, 3),
    buckets=st.booleans(),
)
def test_each_part_of_a_mixture_has_exact_epochs_whatever_its_size(
    rows: list[int], weights: list[float], chunk_rows: int, window_chunks: int, epochs: int, buckets: bool
) -> None:
    """Along the stream, a part's first E N samples are E epochs of its N rows, one after the other: also where a turn
    of the mixture (10,000 samples) holds a hundred epochs of a small part. Of buckets, their batches."""
    given_ = {"global_batch": 4, "chunk_rows": chunk_rows, "window_chunks": window_chunks}
    parts = [Part(digest=str(i), rows=r, weight=w) for i, (r, w) in enumerate(zip(rows, weights, strict=False))]
    order = (
        BucketOrder([Order([part], seed=7, **given_) for part in parts], weights[: len(parts)], seed=7)
        if buckets
        else Order(parts, seed=7, **given_)
    )
    found = order.samples(np.arange(4 * 12_000 if buckets else 12_000))
    for number, size in enumerate(rows):
        mine = np.flatnonzero(found.part == number)[: epochs * size]
        assert np.array_equal(found.epoch[mine], np.arange(len(mine)) // size)
        for epoch in range(len(mine) // size):
            assert sorted(found.row[mine[epoch * size : (epoch + 1) * size]].tolist()) == list(range(size))


@settings(max_examples=30, deadline=None)
@given(
    weights=st.lists(st.floats(0.01, 100), min_size=2, max_size=4),
    items=st.lists(st.integers(0, 10**7), min_size=1, max_size=40),
    mixed_draws=st.booleans(),
)
def test_a_mixture_answers_any_items_alike(weights: list[float], items: list[int], mixed_draws: bool) -> None:
    """In any sequence and company, and after whatever was asked before."""
    key = np.uint64(5)
    one, other = (Mixture(weights, key, mixed_draws=mixed_draws) for _ in range(2))
    together = one.draws(np.array(items, np.int64))
    for place, item in enumerate(items):
        part, draw = other.draws(np.array([item], np.int64))
        assert (int(part[0]), int(draw[0])) == (int(together[0][place]), int(together[1][place]))
    assert one.counts(items[0]) == other.counts(items[0])


def test_a_parts_draws_ascend_along_the_stream_in_short_and_long_turns() -> None:
    """Turns of 4 and of 10,000 items."""
    for weights in ([1.0, 3.0], [1.0, 2.0000017]):
        part, draw = Mixture(weights, np.uint64(3)).draws(np.arange(400_000))
        assert np.array_equal(np.sort(draw[part == 0]), np.arange((part == 0).sum()))
        assert (np.diff(draw[part == 1]) == 1).all()


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.05, 20), min_size=4, max_size=4),
    chunk_rows=st.integers(1, 40),
    window_chunks=st.integers(1, 6),
    kind=st.sampled_from(["mixture", "buckets", "buckets of mixtures"]),
    mixed_draws=st.booleans(),
    batches=st.integers(0, 300),
    data=st.data(),
)
def test_the_inverse_finds_every_draw_of_a_row(
    rows: list[int], weights: list[float], chunk_rows: int, window_chunks: int, kind: str, mixed_draws: bool,
    batches: int, data: st.DataObject,
) -> None:  # fmt: skip
    """Against all samples of the stream, one by one; in both formats of run keys."""
    given_ = {"global_batch": 4, "chunk_rows": chunk_rows, "window_chunks": window_chunks, "mixed_draws": mixed_draws}
    pairs_ = zip(rows, weights, strict=False)
    parts = [Part(digest=str(i), rows=r, weight=round(w, 2)) for i, (r, w) in enumerate(pairs_)]
    apart = [[part] for part in parts]
    groups = {"mixture": [parts], "buckets": apart, "buckets of mixtures": [parts[:2], parts[2:]]}[kind]
    orders = [Order(group, seed=7, **given_) for group in groups if group]
    shares = [round(weight, 1) for weight in weights[: len(orders)]]
    order = orders[0] if kind == "mixture" else BucketOrder(orders, shares, seed=7, mixed_draws=mixed_draws)
    stream = order.samples(np.arange(4 * batches))
    for number, part in enumerate(order.parts):
        chosen = np.array(data.draw(st.lists(st.integers(0, part.rows - 1), min_size=1, max_size=9, unique=True)))
        found: set[tuple[int, int]] = set()
        for index, positions in order.draws_of(number, chosen, 4 * batches):
            pairs = list(zip(chosen[index].tolist(), positions.tolist(), strict=True))
            assert not found & set(pairs) and len(set(pairs)) == len(pairs)
            found |= set(pairs)
        mine = np.flatnonzero((stream.part == number) & np.isin(stream.row, chosen))
        assert found == set(zip(stream.row[mine].tolist(), mine.tolist(), strict=True))


def test_the_inverse_costs_the_same_in_a_stream_of_billions() -> None:
    order = order_of(4_120_000_000, 1024, 64, 3072)
    batch = order.batch(329_999)
    assert np.array_equal(order.positions_of(0, batch.row, batch.epoch), batch.position)
