"""Images in the loop: the latents that the encode job would have written, cropped and mirrored pixel by pixel."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from altdiffusion.config import from_dict
from altdiffusion.diffusion.image_crop import crop, offsets, open_rgb
from altdiffusion.diffusion.models import load_bundle
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.pipeline_step import run_pipeline_step
from altdiffusion.execution.progress import Progress
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.config import OnlineConfig, TrainConfig
from altdiffusion.training.data import layout
from altdiffusion.training.data.images import image_layout
from altdiffusion.training.data.loader import Loader, RowGroups, Samples
from altdiffusion.training.launch_local import run_local
from altdiffusion.training.loop.loop import open_data, open_task
from altdiffusion.training.order.mirrored import mirrored_at
from altdiffusion.training.run.resolve import resolve
from altdiffusion.training.tasks.latents import OnlineLatents
from pipelines.encode import EncodeJobConfig, note_autoencoder, pipeline_steps
from tests import training_lake
from tests.curation_lake import image, write_images
from tests.training_lake import LETTERS, TOKENS, Recorder

ROWS, SIDE = 24, 16
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    where = training_lake.make_lake(tmp_path_factory.mktemp("online"))
    captions = {row: LETTERS[row] + LETTERS[-row - 1] for row in range(ROWS)}
    write_images(where, range(ROWS), captions=captions, rows_per_shard=10)
    return where


def encoded(lake: str, latent: str) -> Version:
    base = f"{lake}/models/base"
    encode = {
        "vae": f"{base}/vae", "tokenizer": f"{base}/tokenizer", "resolution": SIDE, "max_length": TOKENS,
        "micro_batch": 4, "seed": 9, "latent": latent, "threads": 0,
    }  # fmt: skip
    job = from_dict(EncodeJobConfig, {"lake": lake, "encode": encode, "latents": f"latents-{latent}"})
    (pipeline_step,) = pipeline_steps(job)
    (version,) = run_pipeline_step(
        Lake(lake), pipeline_step, backend="inline", progress=Progress("encode", stream=io.StringIO())
    )
    return version


def config(lake: str, **changes: Any) -> TrainConfig:
    online = {"resolution": SIDE, "seed": 9, "threads": 2, **changes.pop("online", {})}
    return training_lake.config(lake, **{"datasets": [{"name": "images"}], "online": online, **changes})


def rows_of(lake: str, settings: OnlineConfig, threads: int = 2) -> RowGroups:
    bundle = load_bundle(f"{lake}/models/base")
    found = image_layout(replace(settings, threads=threads), bundle.tokenizer)
    return RowGroups([Lake(lake).version("images")], found, cache_bytes=1 << 20)


def gathered(rows: RowGroups, index: np.ndarray[Any, Any], mirrored: np.ndarray[Any, Any] | None = None) -> Samples:
    into = rows.empty(len(index))
    rows.gather(index, into, mirrored)
    return Samples(step=0, positions=torch.from_numpy(index), tensors=into)


@pytest.mark.parametrize("latent", ["mode", "sample"])
def test_latents_are_those_of_the_encode_job(lake: str, latent: Any) -> None:
    stored = encoded(lake, latent).read()
    settings = OnlineConfig(resolution=SIDE, seed=9, latent=latent)
    samples = gathered(rows_of(lake, settings), np.arange(ROWS))
    online = OnlineLatents(settings, load_bundle(f"{lake}/models/base"), CPU)
    found, pieces = online(samples), torch.cat([online(piece) for piece in samples.micro(5)])
    wanted = np.stack([np.frombuffer(value, "<f2").reshape(4, 4, 4) for value in stored["latent"].to_pylist()])
    assert online.shape(samples) == wanted.shape[1:]
    tolerance = 2**-10 * max(1.0, float(np.abs(wanted).max()))  # one rounding to float16
    for one in (found, pieces):
        assert np.abs(one.numpy() - wanted.astype(np.float32)).max() <= tolerance
    assert samples["token_ids"].tolist() == stored["token_ids"].to_pylist()
    assert samples["sample_ids"].tolist() == stored["sample_id"].to_pylist()


def test_another_seed_crops_elsewhere(lake: str) -> None:
    one, other = (gathered(rows_of(lake, OnlineConfig(resolution=SIDE, seed=seed)), np.arange(8)) for seed in (9, 10))
    assert not torch.equal(one["pixels"], other["pixels"])


@pytest.mark.parametrize("threads", [1, 3])
def test_pixels_are_cropped_at_their_offsets_and_mirrored_exactly(lake: str, threads: int) -> None:
    settings = OnlineConfig(resolution=SIDE, seed=9)
    rows, index = rows_of(lake, settings, threads), np.array([1, 2, 9, 10, 23])
    coins = np.array([True, False, True, True, False])
    found = gathered(rows, index, coins)["pixels"].numpy()
    where = offsets(9, 1000 - 7 * index)
    for number, row in enumerate(index.tolist()):
        pixels, _ = crop(open_rgb(image(row, (40 + row % 20, 36))), (SIDE, SIDE), where[number])
        assert np.array_equal(found[number], pixels[:, ::-1] if coins[number] else pixels)
    version = Lake(lake).version("images")
    stored = sum(len(body) for body in version.read(["image"])["image"].to_pylist())
    assert rows.cached_bytes < stored + ROWS * (8 * 3 + 8 + 4 * TOKENS) + 3 * 8 + 1  # encoded, as they are stored


def test_a_coin_for_each_position_reaches_the_images(lake: str) -> None:
    run = resolve(config(lake, flip=0.5), lake)
    task = open_task(run, None, CPU)
    order, rows = open_data(run, task.layout)
    plain = rows_of(lake, OnlineConfig(resolution=SIDE, seed=9))
    loader = Loader(order, rows, stop=6, mirrored=lambda at: mirrored_at(run.seed, at, 0.5))
    turned = 0
    for samples in loader:
        batch = order.batch(samples.step)
        straight = gathered(plain, batch.row)["pixels"]
        coin = torch.from_numpy(mirrored_at(run.seed, batch.position, 0.5))
        assert torch.equal(samples["pixels"], torch.where(coin.view(-1, 1, 1, 1), straight.flip(2), straight))
        turned += int(coin.sum())
    loader.close()
    assert 10 < turned < 38


@pytest.mark.parametrize("changes", [{}, {"flip": 0.5, "order": {"language_temperature": 2.0}}])
def test_training_resumes_bit_for_bit(lake: str, changes: dict[str, Any]) -> None:
    name = f"on-{len(changes)}"
    straight = run_local(config(lake, run=name, steps=6, **changes), lake, reporter=Recorder())
    for steps in (1, 4, 6):
        settings = config(lake, run=f"{name}-stopped", steps=steps, online={"threads": steps}, **changes)
        found = run_local(settings, lake, reporter=Recorder())
    weights = straight.tensors(checkpoints.UNET)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in found.tensors(checkpoints.UNET).items())
    micro = run_local(config(lake, run=f"{name}-micro", steps=6, micro_batch=2, **changes), lake, reporter=Recorder())
    for key, tensor in micro.tensors(checkpoints.UNET).items():
        torch.testing.assert_close(tensor, weights[key], rtol=0, atol=2e-3)


def test_the_loss_is_that_of_the_stored_latents(lake: str) -> None:
    """The same rows, positions and noise: the first loss of both ways differs by rounding only."""
    run = resolve(config(lake, run="loss"), lake)
    task = open_task(run, None, CPU)
    version = encoded(lake, "mode")
    stored_run = resolve(
        training_lake.config(lake, run="stored", datasets=[{"name": version.ref.name}], online=None), lake
    )
    stored_task = open_task(stored_run, None, CPU)
    index = np.array([0, 3, 11, 20])
    images = gathered(rows_of(lake, OnlineConfig(resolution=SIDE, seed=9)), index)
    latents = gathered(RowGroups([version], layout.LATENTS, cache_bytes=1 << 20), index)
    assert task.loss(images).item() == pytest.approx(stored_task.loss(latents).item(), rel=1e-4)
    assert task.flops(images) == stored_task.flops(latents) > 0


def test_what_cannot_be_trained_on_is_named(lake: str, tmp_path: Path) -> None:
    with pytest.raises(AltDiffusionError, match="holds latents, not images"):
        run_local(config(lake, datasets=[{"name": "latents"}]), lake, reporter=Recorder())
    where = training_lake.make_lake(tmp_path)
    write_images(where, range(12), bodies={5: b"no picture"}, captions=dict.fromkeys(range(12), "ab"))
    with pytest.raises(AltDiffusionError, match=r"cannot be decoded \(sample 965: .*UnidentifiedImageError"):
        run_local(config(where), where, reporter=Recorder())
    write_images(where, range(12), captions=dict.fromkeys(range(12), "ab\tde"))
    with pytest.raises(AltDiffusionError, match="language suffix would reach the text encoder"):
        run_local(config(where, run="tab"), where, reporter=Recorder())


def test_an_image_smaller_than_the_resolution_is_enlarged() -> None:
    small = Image.new("RGB", (8, 6), (10, 20, 30))
    pixels, _ = crop(small, (SIDE, SIDE), np.array([0.5, 0.5], np.float32))
    assert pixels.shape == (SIDE, SIDE, 3) and (pixels == (10, 20, 30)).all()


def test_without_a_seed_images_are_cropped_by_the_run(lake: str) -> None:
    """Another run or stage crops elsewhere; the same one at the same offsets; with a seed, as the encode job would."""

    def offsets(name: str, seed: int | None) -> Any:
        run = resolve(config(lake, run=name, key=None, online={"seed": seed}), lake)
        layout = open_task(run, None, CPU).layout
        table = Lake(lake).version("images").read(["sample_id", "caption", "image"])
        return layout.decode(table)["offsets"]

    assert torch.equal(offsets("one", None), offsets("one", None))
    assert not torch.equal(offsets("one", None), offsets("two", None))
    assert torch.equal(offsets("one", 9), offsets("two", 9))


def test_latents_are_for_the_autoencoder_that_made_them(lake: str, tmp_path: Path) -> None:
    """The encode job notes what its VAE is: a base whose VAE is another one is refused, a copy is not."""
    encoded(lake, "mode")
    settings = {"datasets": [{"name": "latents-mode"}]}
    assert resolve(training_lake.config(lake, **settings), lake).datasets
    (note,) = (Path(lake) / "autoencoders").iterdir()
    shutil.copytree(f"{lake}/models/base", tmp_path / "copy")
    copied = tmp_path / "copy/vae/config.json"
    copied.write_text(json.dumps(json.loads(copied.read_text()) | {"_name_or_path": "elsewhere"}))
    start = {"base": str(tmp_path / "copy")}
    assert resolve(training_lake.config(lake, run="copy", start=start, **settings), lake).datasets
    training_lake.bundle(seed=9).vae.save_pretrained(tmp_path / "copy/vae")
    with pytest.raises(AltDiffusionError, match=r"encoder of the VAE .*copy/vae.* which made dataset:latents-mode@"):
        resolve(training_lake.config(lake, run="copy", start=start, **settings), lake)
    note.unlink()
    with pytest.raises(AltDiffusionError, match="run the encode job of that dataset again: it then notes"):
        resolve(training_lake.config(lake, run="copy", start=start, **settings), lake)
    base = f"{lake}/models/base"
    encode = {"vae": f"{base}/vae", "tokenizer": f"{base}/tokenizer", "resolution": SIDE}
    note_autoencoder(from_dict(EncodeJobConfig, {"lake": lake, "encode": encode}), Lake(lake))
    assert note.exists()
