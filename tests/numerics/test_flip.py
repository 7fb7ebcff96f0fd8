"""Mirrored samples: a coin keyed by the position decides, and the row comes from the mirrored images' latents."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from altdiffusion.diffusion import noise
from altdiffusion.errors import AltDiffusionError
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.data import layout
from altdiffusion.training.data.loader import Loader
from altdiffusion.training.launch_local import run_local
from altdiffusion.training.loop.loop import open_data
from altdiffusion.training.order.mirrored import mirrored_at
from altdiffusion.training.run.record import read_record
from altdiffusion.training.run.resolve import resolve
from altdiffusion.training.seen import seen
from tests import training_lake
from tests.training_lake import SHAPE, Recorder, write_latents


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    where = training_lake.make_lake(tmp_path_factory.mktemp("flip"))
    for mirrored in (False, True):
        write_latents(where, "mixed" + "-mirrored" * mirrored, 90, languages=("en", "de", "de"), mirrored=mirrored)
    return where


def config(lake: str, flip: float = 0.5, **changes: object) -> TrainConfig:
    data = [{"name": "mixed", "mirrored": "mixed-mirrored"}]
    return training_lake.config(lake, **{"datasets": data, "flip": flip, **changes})


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_the_coin_is_keyed_by_position_and_falls_as_often_as_it_should(probability: float) -> None:
    positions = np.arange(10**6, 10**6 + 100_000)
    found = mirrored_at(3, positions, probability)
    sigma = math.sqrt(probability * (1 - probability) / len(positions))
    assert abs(found.mean() - probability) <= 5 * sigma
    some = np.array([10**6 + 77, 10**6 + 5, 10**6 + 99_999])
    assert np.array_equal(mirrored_at(3, some, probability), found[some - 10**6])
    if 0 < probability < 1:
        assert not np.array_equal(mirrored_at(4, positions, probability), found)
        pairs = found[:-1].astype(float) * found[1:]  # neighbours are independent
        assert abs(pairs.mean() - probability**2) <= 5 * math.sqrt(probability**2 / len(pairs))


def test_the_coin_is_not_the_caption_drop(lake: str) -> None:
    positions = np.arange(20_000)
    drop = (noise.keyed_uniform(3, torch.from_numpy(positions), noise.CAPTION_DROP) < 0.5).numpy()
    assert abs((mirrored_at(3, positions, 0.5) == drop).mean() - 0.5) < 0.02


@pytest.mark.parametrize("temperature", [None, 3.0])
@pytest.mark.parametrize("world", [1, 2])
def test_rows_come_from_the_one_or_the_other(lake: str, world: int, temperature: float | None) -> None:
    order_config = {"chunk_rows": 16, "window_chunks": 4, "language_temperature": temperature}
    run = resolve(config(lake, order=order_config), lake)
    order, rows = open_data(run, layout.LATENTS)
    data = (replace(run.config.datasets[0], mirrored=None),)
    plain, _ = open_data(resolve(replace(run.config, flip=0.0, datasets=data, run="plain"), lake))
    truth = noise.keyed_normal(0, torch.arange(90), 7, SHAPE).half()
    spoken = np.array([("en", "de", "de")[row % 3] for row in range(90)])
    of_part = [np.flatnonzero(spoken == name) for name in ("de", "en")] if temperature else [np.arange(90)]
    for rank in range(world):
        loader = Loader(
            order, rows, rank=rank, world=world, stop=25, mirrored=lambda at: mirrored_at(run.seed, at, 0.5)
        )
        for samples in loader:
            share = plain.share(samples.step, rank, world)  # the order does not depend on mirroring
            at = [of_part[part][row] for part, row in zip(share.part, share.row, strict=True)]
            coin = torch.from_numpy(mirrored_at(run.seed, share.position, 0.5)).view(-1, 1, 1, 1)
            assert torch.equal(samples["latents"], torch.where(coin, truth[at] + 1, truth[at]))
        loader.close()


def test_training_resumes_bit_for_bit_and_names_both_datasets(lake: str) -> None:
    straight = run_local(config(lake, run="straight", steps=7), lake, reporter=Recorder())
    for steps in (2, 3, 7):
        found = run_local(config(lake, run="stopped", steps=steps), lake, reporter=Recorder())
    unflipped = run_local(
        config(lake, 0.0, run="never", steps=7, datasets=[{"name": "mixed"}]), lake, reporter=Recorder()
    )
    weights = straight.tensors(checkpoints.UNET)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in found.tensors(checkpoints.UNET).items())
    assert not all(torch.equal(tensor, weights[key]) for key, tensor in unflipped.tensors(checkpoints.UNET).items())
    names = [ref.partition("@")[0] for ref in straight.parents]
    assert names == ["dataset:mixed", "dataset:mixed-mirrored", "model:base"]
    record = read_record(lake, "straight")
    assert record is not None and record["mirrored"][0].startswith("dataset:mixed-mirrored@")
    (part,) = seen(lake, "straight")
    assert part.version.ref.name == "mixed" and part.samples == 7 * 8


def test_a_dataset_that_is_not_the_mirrored_one_is_refused(lake: str, tmp_path: Path) -> None:
    write_latents(lake, "short-mirrored", 80, mirrored=True)
    write_latents(lake, "other-mirrored", 90, seed=1, mirrored=True)
    for other in ("mixed", "short-mirrored", "other-mirrored"):
        with pytest.raises(AltDiffusionError, match="is not the mirrored one of dataset:mixed"):
            resolve(config(lake, datasets=[{"name": "mixed", "mirrored": other}]), lake)
    with pytest.raises(AltDiffusionError, match="a mirrored latent is not the latent of the mirrored image"):
        config(lake, datasets=[{"name": "mixed"}])
    with pytest.raises(AltDiffusionError, match="leave them out"):
        config(lake, 0.0)
    with pytest.raises(AltDiffusionError, match=r"must be between 0 and 1"):
        config(lake, 1.5)
