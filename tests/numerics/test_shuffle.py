"""Is an epoch's order a fair shuffle? Four statistics that a plain shard shuffle fails and ours passes.

Each statistic is a standard normal number z under the hypothesis "every order of the rows is equally likely":

- gaps: how far apart in the epoch two rows that are neighbours in the dataset come (chi-square over 20 classes);
- autocorrelation: Spearman's rank correlation of each row with the next one drawn;
- meetings: draws that follow each other and come from one shard;
- spread: rows of each shard in each tenth of the epoch (chi-square over the table).

Significance: |z| < 5 accepts (two-sided p > 5.7e-7; with the 80 numbers of a test, a fair shuffle fails once in about
20,000 sets of seeds, and the seeds are fixed). A plain shard shuffle has to be off by 20 and more, every time.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from altdiffusion.training.order.batches import BucketOrder, Order, Part

I64 = NDArray[np.int64]
ROWS, SHARD, SEEDS = 20_011, 256, range(20)  # a prime: the last shard is short
ACCEPTED, REFUSED = 5.0, 20.0


def normal_of_chi_square(value: float, freedom: int) -> float:
    """Return Wilson and Hilferty's cube root (1931): about N(0, 1) where `value` is chi-square."""
    scale = 2 / (9 * freedom)
    return float(((value / freedom) ** (1 / 3) - (1 - scale)) / math.sqrt(scale))


def gaps(order: I64, shard: I64) -> float:
    """Return z; for U, V uniform on (0, 1), P(|U - V| < x) = 1 - (1 - x)**2. Pairs (0, 1), (2, 3), ... share no row."""
    rows, classes = len(order), 20
    place = np.empty(rows, np.int64)
    place[order] = np.arange(rows)
    pairs = np.abs(np.diff(place)[::2]) / rows
    edges = 1 - np.sqrt(1 - np.arange(1, classes) / classes)
    counts = np.bincount(np.searchsorted(edges, pairs), minlength=classes)
    expected = len(pairs) / classes
    return normal_of_chi_square(float(((counts - expected) ** 2 / expected).sum()), classes - 1)


def autocorrelation(order: I64, shard: I64) -> float:
    rows = len(order)
    correlation = float(np.corrcoef(order[:-1], order[1:])[0, 1])
    return (correlation + 1 / rows) * math.sqrt(rows)


def meetings(order: I64, shard: I64) -> float:
    rows, sizes = len(order), np.bincount(shard)
    chance = float((sizes * (sizes - 1)).sum() / (rows * (rows - 1)))
    met = int((shard[order[:-1]] == shard[order[1:]]).sum())
    return (met - (rows - 1) * chance) / math.sqrt((rows - 1) * chance * (1 - chance))


def spread(order: I64, shard: I64) -> float:
    rows, tenths = len(order), 10
    sizes = np.bincount(shard)
    counts = np.zeros((len(sizes), tenths))
    np.add.at(counts, (shard[order], np.arange(rows) * tenths // rows), 1)
    expected = np.outer(sizes, counts.sum(axis=0)) / rows
    return normal_of_chi_square(float(((counts - expected) ** 2 / expected).sum()), (len(sizes) - 1) * (tenths - 1))


STATISTICS = (gaps, autocorrelation, meetings, spread)


def statistics(order: I64, shard: I64) -> list[float]:
    assert np.array_equal(np.sort(order), np.arange(len(order)))
    return [statistic(order, shard) for statistic in STATISTICS]


def shard_shuffle(seed: int, buffer: int) -> I64:
    """Return an order as of loaders of tar shards: shards in random order, rows in sequence, through a buffer that
    returns a random one of its rows for each that comes in."""
    random = np.random.default_rng(seed)
    stream = np.concatenate(
        [np.arange(ROWS)[s * SHARD : (s + 1) * SHARD] for s in random.permutation(-(-ROWS // SHARD))]
    )
    held, out = stream[:buffer].copy(), []
    for row in stream[buffer:].tolist():
        at = int(random.integers(buffer)) if buffer else 0
        if buffer:
            held[at], row = row, int(held[at])
        out.append(row)
    return np.array([*out, *random.permutation(held).tolist()], dtype=np.int64)


def ours(seed: int, *, window: int, epoch: int = 0, rows: int = ROWS) -> I64:
    order = Order([Part(digest="d", rows=rows)], seed=seed, global_batch=64, chunk_rows=SHARD, window_chunks=window)
    return order.samples(np.arange(epoch * rows, (epoch + 1) * rows)).row


ALL_SHARDS = np.arange(ROWS) // SHARD


@pytest.mark.parametrize("epoch", [0, 3])
def test_a_window_of_all_chunks_is_a_fair_shuffle(epoch: int) -> None:
    found = np.array([statistics(ours(seed, window=100, epoch=epoch), ALL_SHARDS) for seed in SEEDS])
    assert np.abs(found).max() < ACCEPTED
    # And not too good to be true: over the seeds, z scatters as a standard normal number does.
    assert (np.abs(found.mean(axis=0)) < 5 / math.sqrt(len(SEEDS))).all()
    assert (found.std(axis=0) > 0.5).all()


def test_numpys_permutation_passes_too() -> None:
    """The statistics accept what is known to be fair."""
    found = [statistics(np.random.default_rng(seed).permutation(ROWS), ALL_SHARDS) for seed in SEEDS]
    assert np.abs(np.array(found)).max() < ACCEPTED


@pytest.mark.parametrize("buffer", [0, 64, SHARD])
def test_a_plain_shard_shuffle_fails(buffer: int) -> None:
    found = np.array([statistics(shard_shuffle(seed, buffer), ALL_SHARDS) for seed in range(3)])
    assert (np.abs(found) > REFUSED).all()


@pytest.mark.parametrize("name", ["temperature", "buckets"])
def test_parts_of_mixtures_are_fair_shuffles_too(name: str) -> None:
    """One language among others, or one bucket: its own rows come in a fair order."""
    for seed in range(5):
        parts = [Part(digest="a", rows=ROWS, weight=0.7, chunk_rows=SHARD), Part(digest="b", rows=999, weight=0.3)]
        if name == "temperature":
            order = Order(parts, seed=seed, global_batch=64, chunk_rows=512, window_chunks=100)
        else:
            each = [Order([p], seed=seed, global_batch=64, chunk_rows=SHARD, window_chunks=100) for p in parts]
            order = BucketOrder(each, [0.7, 0.3], seed=seed)
        drawn = order.samples(np.arange(40_000))
        mine = drawn.row[(drawn.part == 0) & (drawn.epoch == 0)]
        assert len(mine) == ROWS
        assert np.abs(np.array(statistics(mine, ALL_SHARDS))).max() < ACCEPTED


@pytest.mark.parametrize("window", [4, 16])
def test_within_a_small_window_rows_are_a_fair_shuffle(window: int) -> None:
    """What a window smaller than the dataset costs, exactly: its chunks stay together, and within it all is fair."""
    size, chunks = window * SHARD, -(-ROWS // SHARD)
    for seed in range(5):
        order = ours(seed, window=window, rows=chunks * SHARD)
        for start in range(0, len(order) - size + 1, size):
            rows = order[start : start + size]
            assert len(np.unique(rows // SHARD)) == window
            ranks = np.argsort(np.argsort(rows)).astype(np.int64)  # 0 to size - 1, in the order of their rows
            assert np.abs(np.array(statistics(ranks, np.arange(size) // SHARD))).max() < ACCEPTED


def test_which_chunks_share_a_window_is_fair() -> None:
    """Neighbouring chunks fall into one window as often as any two do."""
    chunks, chunk, window, trials = 64, 4, 8, 400
    together = 0
    for seed in range(trials):
        order = Order(
            [Part(digest="d", rows=chunks * chunk)], seed=seed, global_batch=64, chunk_rows=chunk, window_chunks=window
        )
        drawn = order.samples(np.arange(chunks * chunk)).row // chunk
        for start in range(0, len(drawn), window * chunk):
            together += int((np.diff(np.unique(drawn[start : start + window * chunk])) == 1).sum())
    expected = trials * (window - 1)  # chunks - 1 pairs of neighbours, each together with (window - 1) / (chunks - 1)
    assert abs(together - expected) < ACCEPTED * math.sqrt(expected)
