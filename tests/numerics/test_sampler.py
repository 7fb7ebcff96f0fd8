"""Sampling: equal to the stock pipeline, and every image a function of its own row alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from altdiffusion.diffusion import models
from altdiffusion.generation.sampler import Sampler
from altdiffusion.generation.schedulers import make_scheduler
from altdiffusion.generation.settings import SamplerName
from tests import training_lake

WORDS = ["red", "a blue bird", "cat", "the old house", "rain", "moon", "tree of gold", "ship", "bread", "fish"]
PROMPTS = [f"{WORDS[i % 10]} {WORDS[i * 7 // 10 % 10]}" for i in range(40)]
SEEDS = [1000 + 17 * i for i in range(40)]


@pytest.fixture(scope="module")
def bundle() -> models.ModelBundle:
    """Return the demo's UNet and VAE with random weights, large enough for matrix products to split differently."""
    torch.manual_seed(3)
    text = models.text_config_demo(32) | {"num_hidden_layers": 2}
    return models.ModelBundle(
        unet=models.build_unet(models.unet_config_demo()),
        vae=models.build_vae(models.vae_config_demo()),
        text_encoder=models.build_text_encoder(text),
        tokenizer=training_lake.tokenizer(),
        scheduler=make_scheduler("ddim", models.scheduler_config()),
    )


def sampler(bundle: models.ModelBundle, **changes: Any) -> Sampler:
    settings: dict[str, Any] = {"sampler": "ddim", "steps": 4, "guidance_scale": 3.0, "batch_rows": 8}
    return Sampler(bundle, **(settings | changes))


def stock_scheduler(name: str) -> Any:
    """Return a sampler's scheduler as a user of diffusers makes it, with every setting of Stable Diffusion by hand."""
    import diffusers

    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    shared = betas | {"prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 1}
    return {
        "ddim": lambda: diffusers.DDIMScheduler(**shared, clip_sample=False, set_alpha_to_one=False),
        "dpmpp": lambda: diffusers.DPMSolverMultistepScheduler(**shared),
        "euler": lambda: diffusers.EulerDiscreteScheduler(**shared),
        "pndm": lambda: diffusers.PNDMScheduler(**shared, skip_prk_steps=True, set_alpha_to_one=False),
        "unipc": lambda: diffusers.UniPCMultistepScheduler(**shared),
    }[name]()


@pytest.mark.parametrize("name", get_args(SamplerName))
@pytest.mark.parametrize("scale", [3.0, 1.0])
def test_it_draws_what_the_stock_pipeline_draws(bundle: models.ModelBundle, name: str, scale: float) -> None:
    """Also on the same noise with diffusers' own scheduler: the largest difference is 0."""
    from diffusers import StableDiffusionPipeline

    ours = sampler(bundle, sampler=name, steps=6, guidance_scale=scale)
    pipeline = StableDiffusionPipeline(
        vae=bundle.vae, text_encoder=bundle.text_encoder, tokenizer=bundle.tokenizer, unet=bundle.unet,
        scheduler=stock_scheduler(name), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt=PROMPTS[:8], latents=ours.initial_latents(SEEDS[:8], 32, 32), num_inference_steps=6,
        guidance_scale=scale, height=32, width=32, eta=0.0, output_type="np",
    ).images  # fmt: skip
    drawn = ours.draw(PROMPTS[:8], SEEDS[:8], 32, 32)
    assert drawn.std() > 1  # an image, not one colour
    np.testing.assert_array_equal(drawn, (theirs * 255).round().astype(np.uint8))


@pytest.mark.parametrize("name", get_args(SamplerName))
def test_a_row_does_not_depend_on_its_batch_with_any_sampler(bundle: models.ModelBundle, name: str) -> None:
    ours = sampler(bundle, sampler=name, batch_rows=4)
    together = ours.draw(PROMPTS[:8], SEEDS[:8], 32, 32)
    order = [5, 0, 7, 2, 1, 6, 3, 4]
    shuffled = ours.draw([PROMPTS[i] for i in order], [SEEDS[i] for i in order], 32, 32)
    np.testing.assert_array_equal(shuffled, together[order])
    np.testing.assert_array_equal(ours.draw(PROMPTS[3:4], SEEDS[3:4], 32, 32), together[3:4])


def test_a_row_is_drawn_the_same_in_whatever_company(bundle: models.ModelBundle) -> None:
    ours = sampler(bundle)
    together = ours.draw(PROMPTS, SEEDS, 32, 32)
    order = np.random.default_rng(0).permutation(40)
    shuffled = ours.draw([PROMPTS[i] for i in order], [SEEDS[i] for i in order], 32, 32)
    np.testing.assert_array_equal(shuffled, together[order])
    for start, stop in ((0, 1), (3, 8), (30, 40), (7, 24)):  # units of other sizes
        np.testing.assert_array_equal(ours.draw(PROMPTS[start:stop], SEEDS[start:stop], 32, 32), together[start:stop])
    assert len({image.tobytes() for image in together}) == 40


def test_seed_prompt_and_size_each_change_the_image(bundle: models.ModelBundle) -> None:
    ours = sampler(bundle)
    drawn = ours.draw(["cat", "cat", "dog", "cat"], [1, 2, 1, 1], 32, 32)
    assert not np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    np.testing.assert_array_equal(drawn[0], drawn[3])
    assert ours.draw(["cat"], [1], 48, 32).shape == (1, 32, 48, 3)
    assert ours.initial_latents([1, -1], 48, 32).shape == (2, 16, 8, 12)


def test_half_precision_stays_close(bundle: models.ModelBundle) -> None:
    full = sampler(bundle).draw(PROMPTS[:8], SEEDS[:8], 32, 32).astype(int)
    unet, vae = models.build_unet(models.unet_config_demo()), models.build_vae(models.vae_config_demo())
    half = replace(bundle, unet=unet, vae=vae)
    half.unet.load_state_dict(bundle.unet.state_dict())
    half.vae.load_state_dict(bundle.vae.state_dict())
    half.unet.to(torch.bfloat16), half.vae.to(torch.bfloat16)
    drawn = sampler(half).draw(PROMPTS[:8], SEEDS[:8], 32, 32).astype(int)
    assert 0 < np.abs(drawn - full).mean() < 5  # grey levels


def test_a_smaller_batch_is_used_where_it_gives_the_same_bits(
    bundle: models.ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[int] = []
    original = Sampler._batch

    def batch(self: Sampler, rows: Any) -> Any:
        shapes.append(len(rows))
        return original(self, rows)

    monkeypatch.setattr(Sampler, "_batch", batch)
    full = sampler(bundle, batch_rows=32, steps=10).draw(PROMPTS[:32], SEEDS[:32], 32, 32)
    assert shapes == [32]
    ours = sampler(bundle, batch_rows=32, steps=10)
    for count in (1, 3, 9, 17):
        shapes.clear()
        np.testing.assert_array_equal(ours.draw(PROMPTS[:count], SEEDS[:count], 32, 32), full[:count])
        np.testing.assert_array_equal(
            ours.draw(PROMPTS[-count - 8 : -8], SEEDS[-count - 8 : -8], 32, 32), full[-count:]
        )
        assert shapes[0] == shapes[1] >= count
        if count <= 16:
            assert shapes[0] <= 16  # measured on x86-64: 16 rows give the bits of 32
    shapes.clear()
    loose = sampler(bundle, batch_rows=32, steps=10, batch_shapes="any")
    one = loose.draw(PROMPTS[:1], SEEDS[:1], 32, 32)
    three = loose.draw(PROMPTS[:3], SEEDS[:3], 32, 32)
    assert shapes == [1, 3]
    for drawn in (one, three):
        assert np.abs(drawn.astype(int) - full[: len(drawn)]).max() <= 1  # grey levels


def test_a_size_whose_bits_differ_is_not_used() -> None:
    from altdiffusion.generation.batch_shapes import BatchShapes

    def probe(part: slice) -> torch.Tensor:  # the bits of a row depend on the size of its batch below 4
        rows = torch.arange(8.0)[part, None]
        return rows + (1e-7 if len(rows) < 4 else 0.0)

    asked: list[int] = []

    def counted(part: slice) -> torch.Tensor:
        asked.append(part.stop - part.start)
        return probe(part)

    shapes = BatchShapes(8)
    assert [shapes.smallest(count, 50, "form", counted) for count in (1, 2, 3, 4, 5, 8)] == [4, 4, 4, 4, 6, 8]
    assert asked == [8, 1, 2, 3, 4, 4, 6, 6]  # each proof once, up to the first difference
    assert BatchShapes(8).smallest(1, 2, "form", lambda _: pytest.fail("not worth it for two steps")) == 8
    assert BatchShapes(30).candidates(3) == [3, 4, 6, 8, 12, 16, 24, 30]
