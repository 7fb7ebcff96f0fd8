"""One bucket per batch: shapes apart, shares and epochs exact, the same for any workers, and training on two shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from altdiffusion.diffusion import noise
from altdiffusion.errors import AltDiffusionError
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.data import layout
from altdiffusion.training.data.loader import Loader
from altdiffusion.training.launch_local import run_local
from altdiffusion.training.loop.loop import open_data
from altdiffusion.training.order.batches import BucketOrder, Order, Part
from altdiffusion.training.run.resolve import resolve
from altdiffusion.training.seen import seen
from tests import training_lake
from tests.training_lake import Recorder, file_hashes, write_latents

SQUARE, WIDE = (4, 4, 4), (4, 4, 6)


def order_of(rows: list[int], weights: list[float], batch: int, seed: int = 1) -> BucketOrder:
    """Return an order of buckets of two parts each: a language drawn twice as often as its rows, and the rest."""
    buckets = [
        Order(
            [Part(digest=f"{i}a", rows=max(1, size // 3), weight=2), Part(digest=f"{i}b", rows=size, weight=3)],
            seed=seed,
            global_batch=batch,
            chunk_rows=8,
            window_chunks=3,
        )
        for i, size in enumerate(rows)
    ]
    return BucketOrder(buckets, weights, seed=seed)


shapes = st.lists(st.tuples(st.integers(1, 60), st.floats(0.05, 20)), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(shapes=shapes, batch=st.integers(1, 24), n=st.integers(0, 10**6))
def test_a_batch_is_of_one_bucket_and_needs_no_other(shapes: list[tuple[int, float]], batch: int, n: int) -> None:
    rows, weights = [list(column) for column in zip(*shapes, strict=True)]
    order = order_of(rows, weights, batch)  # type: ignore[arg-type]
    found = order.batch(n)
    assert len(set((found.part // 2).tolist())) == 1
    assert sorted(found.position.tolist()) == list(range(n * batch, (n + 1) * batch))
    again = order_of(rows, weights, batch).samples(found.position)  # type: ignore[arg-type]
    assert np.array_equal(again.row, found.row) and np.array_equal(again.epoch, found.epoch)


@settings(max_examples=25, deadline=None)
@given(shapes=shapes, n=st.integers(0, 1000), world=st.sampled_from([1, 2, 3, 4, 6]), micro=st.sampled_from([1, 2, 4]))
def test_workers_and_micro_batches_share_it(shapes: list[tuple[int, float]], n: int, world: int, micro: int) -> None:
    rows, weights = [list(column) for column in zip(*shapes, strict=True)]
    order = order_of(rows, weights, 24)  # type: ignore[arg-type]
    whole = order.batch(n)
    shares = [order.share(n, rank, world) for rank in range(world)]
    pieces = [share.take(slice(s, s + micro)) for share in shares for s in range(0, len(share), micro)]
    assert np.concatenate([piece.position for piece in pieces]).tolist() == whole.position.tolist()
    assert np.concatenate([piece.row for piece in pieces]).tolist() == whole.row.tolist()


@settings(max_examples=25, deadline=None)
@given(shapes=shapes, batch=st.integers(1, 12), batches=st.integers(0, 80))
def test_counts_are_those_of_every_batch(shapes: list[tuple[int, float]], batch: int, batches: int) -> None:
    rows, weights = [list(column) for column in zip(*shapes, strict=True)]
    order = order_of(rows, weights, batch)  # type: ignore[arg-type]
    wanted = [np.zeros(part.rows, np.int64) for part in order.parts]
    for n in range(batches):
        found = order.batch(n)
        for number, counts in enumerate(wanted):
            counts += np.bincount(found.row[found.part == number], minlength=len(counts))
    for counts, times in zip(wanted, order.times(batches), strict=True):
        assert np.array_equal(counts, times)
    assert order.drawn(batches) == [int(counts.sum()) for counts in wanted]
    assert order.epochs(batches) == pytest.approx(tuple(counts.sum() / len(counts) for counts in wanted))


def test_shares_are_exact_by_turns_and_each_bucket_has_exact_epochs() -> None:
    order = BucketOrder(
        [Order([Part(digest=d, rows=r)], seed=1, global_batch=10, chunk_rows=8, window_chunks=2)
         for d, r in (("a", 300), ("b", 100))],
        [300, 100],
        seed=1,
    )  # fmt: skip
    assert order.shares == (3, 1)
    kinds = [int(order.batch(n).part[0]) for n in range(400)]
    assert all(sum(kinds[s : s + 4]) == 1 for s in range(0, 400, 4))
    assert len({tuple(kinds[s : s + 4]) for s in range(0, 400, 4)}) == 4  # in an order that is drawn again each time
    assert [set(times.tolist()) for times in order.times(40)] == [{1}, {1}]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    where = training_lake.make_lake(tmp_path_factory.mktemp("buckets"))
    write_latents(where, "square", 90, shape=SQUARE, languages=("en", "de", "de"))
    write_latents(where, "wide", 30, seed=4, shape=WIDE, languages=("en", "fr"))
    return where


def config(lake: str, **order: object) -> TrainConfig:
    tree = {"chunk_rows": 16, "window_chunks": 4, "buckets": True, **order}
    return training_lake.config(lake, datasets=[{"name": "square"}, {"name": "wide"}], order=tree)


def test_the_loader_allocates_for_the_bucket_of_each_batch(lake: str) -> None:
    run = resolve(config(lake), lake)
    order, rows = open_data(run, layout.LATENTS)
    assert order.shares == (3, 1)
    truth = [
        noise.keyed_normal(s, torch.arange(n), 7, shape).half() for s, n, shape in ((0, 90, SQUARE), (4, 30, WIDE))
    ]
    loader = Loader(order, rows, stop=32)
    shapes = []
    for samples in loader:
        batch = order.batch(samples.step)
        assert torch.equal(samples["latents"], truth[int(batch.part[0])][batch.row])
        shapes.append(tuple(samples["latents"].shape[1:]))
    loader.close()
    assert shapes.count(SQUARE) == 24 and shapes.count(WIDE) == 8


def test_without_the_option_shapes_do_not_mix(lake: str) -> None:
    with pytest.raises(AltDiffusionError, match=r"shape of latents: is 4 x 4 in .* need order.buckets"):
        run_local(config(lake, buckets=False), lake, reporter=Recorder())


@pytest.mark.parametrize("temperature", [None, 4.0])
def test_training_on_two_shapes_resumes_bit_for_bit(lake: str, tmp_path: Path, temperature: float | None) -> None:
    settings_ = replace(config(lake, language_temperature=temperature), run=f"straight-{temperature or 0:g}", steps=9)
    straight = run_local(settings_, lake, reporter=Recorder())
    stopped = replace(settings_, run=f"stopped-{temperature or 0:g}")
    for steps in (1, 4, 5, 9):
        found = run_local(replace(stopped, steps=steps), lake, reporter=Recorder())
    for name in (checkpoints.UNET, checkpoints.EMA):
        ours, theirs = straight.tensors(name), found.tensors(name)
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    other = run_local(replace(settings_, run=f"micro-{temperature or 0:g}", micro_batch=2), lake, reporter=Recorder())
    for key, tensor in straight.tensors(checkpoints.UNET).items():
        torch.testing.assert_close(tensor, other.tensors(checkpoints.UNET)[key], rtol=0, atol=2e-3)
    parts = seen(lake, settings_.run)
    assert sum(part.samples for part in parts) == 9 * 8
    assert {part.version.ref.name for part in parts} == {"square", "wide"}
    order, _ = open_data(resolve(settings_, lake))
    wide = sum(8 for n in range(9) if order.batch(n).part[0] >= len(order.parts) // 2)
    assert parts[1].samples == wide
    assert file_hashes(found.folder)
