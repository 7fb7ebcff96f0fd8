"""Long images: windows and regions as published, bits that depend on nothing else, and no seams."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from altdiffusion.diffusion import models
from altdiffusion.generation.image_request import Drawn, Region, Request
from altdiffusion.generation.passes import prepare
from altdiffusion.generation.sampler import Sampler
from altdiffusion.generation.schedulers import make_scheduler
from altdiffusion.generation.settings import WindowsConfig
from altdiffusion.generation.speed import SpeedConfig
from altdiffusion.generation.windows import parts_of
from demo.base import unpack
from tests import training_lake
from tests.numerics.test_sampler import stock_scheduler

TILED = 4.0
"""Most grey levels, on average, by which tiles of 64 pixels change an image; 2.9 are measured."""


@pytest.fixture(scope="module")
def bundle() -> models.ModelBundle:
    torch.manual_seed(3)
    text = models.text_config_demo(32) | {"num_hidden_layers": 2}
    return models.ModelBundle(
        unet=models.build_unet(models.unet_config_demo()),
        vae=models.build_vae(models.vae_config_demo()),
        text_encoder=models.build_text_encoder(text),
        tokenizer=training_lake.tokenizer(),
        scheduler=make_scheduler("ddim", models.scheduler_config()),
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> models.ModelBundle:
    """Return the demo's base, which draws at 32 pixels from English."""
    return models.load_bundle(unpack(tmp_path_factory.mktemp("base"))[0])


def windows(**changes: Any) -> WindowsConfig:
    return WindowsConfig(**({"side": 32, "overlap": 16} | changes))


def request(prompt: str = "cat", seed: int = 1, width: int = 96, height: int = 32, **changes: Any) -> Request:
    settings: dict[str, Any] = {"steps": 3, "guidance_scale": 3.0, "sampler": "ddim"} | changes
    return Request(prompt=prompt, seed=seed, width=width, height=height, **settings)


def draw(ours: Sampler, rows: Sequence[Request]) -> list[np.ndarray[Any, Any]]:
    drawn: dict[int, Drawn] = {}
    for places, results in ours.draw_rows(rows):
        drawn |= dict(zip(places, results, strict=True))
    assert not any(one.problem for one in drawn.values())
    return [drawn[place].image for place in range(len(rows))]


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("sizes", [(64, 256, 8), (64, 256, 32), (64, 64, 8), (96, 192, 16), (128, 72, 8)])
def test_windows_are_those_of_diffusers(sizes: tuple[int, int, int], circular: bool) -> None:
    from diffusers import StableDiffusionPanoramaPipeline

    height, width, stride = sizes
    views = StableDiffusionPanoramaPipeline.get_views(
        None, height * 8, width * 8, stride=stride, circular_padding=circular
    )
    parts = parts_of(height, width, (), 64, 64 - stride, circular)
    assert [(*part.rows, part.columns[0], part.columns[0] + len(part.columns)) for part in parts] == views


def test_windows_cover_any_size_evenly() -> None:
    for height, width, circular in ((5, 37, False), (9, 37, True), (23, 8, False), (3, 3, True)):
        parts = parts_of(height, width, (), 8, 3, circular)
        seen = np.zeros((height, width), int)
        for part in parts:
            seen[np.ix_(range(*part.rows), part.columns)] += 1
            assert all(part.counted) and part.text == 0
        assert seen.min() >= 1
        lefts = sorted({part.columns[0] for part in parts})
        assert all(later - first <= 5 for first, later in itertools.pairwise(lefts))


def test_regions_share_the_width_and_the_prompt_has_the_rest() -> None:
    parts = parts_of(8, 20, [(0.0, 0.25), (0.5, 1.0)], None)
    assert [(part.text, np.flatnonzero(part.counted).tolist()) for part in parts] == [
        (0, [5, 6, 7, 8, 9]), (1, [0, 1, 2, 3, 4]), (2, list(range(10, 20)))
    ]  # fmt: skip
    assert {part.text for part in parts_of(8, 20, [(0.0, 0.5), (0.5, 1.0)], None)} == {1, 2}
    narrow = parts_of(8, 20, [(0.99, 1.0)], 8, 4)
    assert [part.columns[-1] for part in narrow if part.text == 1] == [19]


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("scale", [3.0, 1.0])
def test_it_draws_what_diffusers_panorama_draws(bundle: models.ModelBundle, circular: bool, scale: float) -> None:
    """They average the next latents and we the noise, which is the same but for the order of sums: at most 1 of 255."""
    from diffusers import StableDiffusionPanoramaPipeline

    class Panorama(StableDiffusionPanoramaPipeline):
        def get_views(self, height: int, width: int, **given: Any) -> Any:  # this VAE has 4 pixels per latent, not 8
            return super().get_views(2 * height, 2 * width, window_size=8, stride=4, **given)

    theirs = Panorama(
        vae=bundle.vae, text_encoder=bundle.text_encoder, tokenizer=bundle.tokenizer, unet=bundle.unet,
        scheduler=stock_scheduler("ddim"), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    theirs.set_progress_bar_config(disable=True)
    ours = Sampler(bundle, batch_rows=1, windows=windows(circular=circular))
    height = 32 if circular else 48  # where windows wrap, theirs cuts a second row of windows at the wrong place
    image = theirs(
        prompt="a blue bird", latents=ours.initial_latents([5], 128, height), num_inference_steps=6,
        guidance_scale=scale, height=height, width=128, circular_padding=circular, output_type="np",
    ).images[0]  # fmt: skip
    (drawn,) = draw(ours, [request("a blue bird", 5, 128, height, steps=6, guidance_scale=scale)])
    difference = np.abs(drawn.astype(int) - (image * 255).round().astype(int))
    assert drawn.std() > 1
    assert difference.max() <= 1 and (difference > 0).mean() < 0.001


def test_the_bits_of_an_image_do_not_depend_on_the_others(bundle: models.ModelBundle) -> None:
    regions = (Region(prompt="rain", span=(0.0, 0.5)), Region(prompt="moon", span=(0.5, 1.0)))
    rows = [
        request("cat", 1), request("dog", 2), request("small", 3, 32), request("dog", 4, sampler="dpmpp"),
        request("cat", 5, regions=regions), request("cat", 6, height=64), request("sun", 7, guidance_scale=1.0),
    ]  # fmt: skip
    ours = Sampler(bundle, batch_rows=4, windows=windows(), vae_tiling=64)
    calls: list[int] = []
    handle = bundle.unet.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    together = draw(ours, rows)
    handle.remove()
    assert set(calls) == {4, 8}  # windows, alone or with their unconditional halves
    for order in ([6, 4, 2, 0, 1, 3, 5], [4], [1, 0]):
        for place, image in zip(order, draw(ours, [rows[place] for place in order]), strict=True):
            np.testing.assert_array_equal(image, together[place])
    alone = Sampler(bundle, batch_rows=4)
    np.testing.assert_array_equal(draw(alone, [rows[2]])[0], together[2])  # no larger than a window
    assert not np.array_equal(draw(alone, [rows[0]])[0], together[0])


def test_deep_cache_keeps_the_features_of_each_call_apart(bundle: models.ModelBundle) -> None:
    rows = [request("cat", 1), request("dog", 2, 160), request("sun", 3)]
    cached = Sampler(bundle, batch_rows=2, windows=windows(), begin=prepare(bundle, SpeedConfig(deep_cache=2)))
    together = draw(cached, rows)
    for row, image in zip(rows, together, strict=True):  # alone, a row's windows are in other calls
        np.testing.assert_array_equal(draw(cached, [row])[0], image)
    exact = draw(Sampler(bundle, batch_rows=2, windows=windows()), rows)
    for image, whole in zip(together, exact, strict=True):
        assert 0 < np.abs(image.astype(int) - whole).mean() < 0.5 * whole.std()


def test_a_region_is_drawn_from_its_own_prompt(base: models.ModelBundle) -> None:
    ours = Sampler(base, batch_rows=4, windows=windows(overlap=0))
    same, rainbow, split, tomato = draw(
        ours,
        [
            request("tomato", regions=(Region(prompt="rainbow", span=(0.0, 1.0)),)), request("rainbow"),
            request("tomato", regions=(Region(prompt="rainbow", span=(0.0, 1 / 3)),)), request("tomato"),
        ],
    )  # fmt: skip
    np.testing.assert_array_equal(same, rainbow)
    small = [request("tomato", 1, 32, regions=(Region(prompt="rainbow", span=(0.0, 1.0)),)), request("rainbow", 1, 32)]
    np.testing.assert_array_equal(*draw(ours, small))
    # The VAE mixes the pixels near an edge, and all of them a little by its normalisation.
    assert np.abs(split[:, :24].astype(int) - rainbow[:, :24]).mean() < 3
    assert np.abs(split[:, 40:].astype(int) - tomato[:, 40:]).mean() < 3
    assert np.abs(tomato.astype(int) - rainbow)[:, :24].mean() > 20


def ranks(images: Sequence[np.ndarray[Any, Any]], seams: Sequence[int]) -> tuple[float, float]:
    """Return how large the gradient across seams is among the gradients inside the same image.

    A column's gradient is the mean absolute difference to the column on its left; that of column 0 is across the wrap.

    Returns:
        Mean rank of the seams, 0 to 1, 0.5 where they are like all others; and the share of seams above the 99th
        percentile of the inside.
    """
    places, above = [], []
    for image in images:
        gradient = np.abs(np.diff(image.astype(float), axis=1, prepend=image[:, -1:])).mean((0, 2))
        inside = np.sort(np.delete(gradient, seams))
        places += list(np.searchsorted(inside, gradient[seams]) / len(inside))
        above += list(gradient[seams] > np.quantile(inside, 0.99))
    return float(np.mean(places)), float(np.mean(above))


def test_seams_are_like_the_inside(base: models.ModelBundle) -> None:
    """Across the windows' edges and the wrap; the same test fails without overlap, and for pieces put together."""
    rows = [request(prompt, seed, 128, steps=10) for seed, prompt in enumerate(["cloud", "rainbow", "volcano"] * 2)]
    ours = draw(Sampler(base, batch_rows=16, windows=windows(circular=True)), rows)
    rank, above = ranks(ours, range(0, 128, 16))
    assert 0.25 < rank < 0.75 and above < 0.05  # measured: 0.41 and 0
    without = draw(Sampler(base, batch_rows=16, windows=windows(circular=True, overlap=0)), rows)
    assert ranks(without, range(0, 128, 32))[0] < 0.15  # measured: 0.08, the white frame that this model draws
    pieces = [
        np.concatenate([ours[(first + piece) % 6][:, 32 * piece : 32 * piece + 32] for piece in range(4)], 1)
        for first in range(6)
    ]
    rank, above = ranks(pieces, range(0, 128, 32))
    assert rank > 0.9 and above > 0.5  # measured: 0.96 and 0.58


def test_tiles_and_the_wrap_leave_no_seam(base: models.ModelBundle) -> None:
    rows = [request(prompt, 3, 128, steps=6) for prompt in ("rainbow", "volcano", "palm tree")]
    whole = draw(Sampler(base, batch_rows=16, windows=windows(circular=True)), rows)
    try:
        tiled = draw(Sampler(base, batch_rows=16, windows=windows(circular=True), vae_tiling=64), rows)
    finally:
        base.vae.disable_tiling()
    difference = np.abs(np.stack(tiled).astype(int) - np.stack(whole).astype(int))
    assert 0 < difference.mean() < TILED
    rank, above = ranks(tiled, [(48 * tile - 32) % 128 for tile in range(1, 3)])
    assert rank < 0.75 and above < 0.05
    rank, above = ranks(tiled, [0])
    assert rank < 0.75 and above == 0
