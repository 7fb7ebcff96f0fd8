"""What draws in benchmarks without a job: models, prompts, loops of `StableDiffusionPipeline`, and the bare networks.

All draw the same prompts with the same weights in memory. Nothing here imports Ray or opens a lake.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from altdiffusion.diffusion import models
from altdiffusion.diffusion.models import ModelBundle
from demo import base

NOUNS = ("cat", "dog", "apple", "house", "ship", "tree", "moon", "bread", "fish", "bird", "flower", "car")
COLORS = ("red", "blue", "green", "golden", "white", "black", "old", "small")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A model, and the sizes that it draws."""

    name: str
    bundle: ModelBundle
    sizes: tuple[tuple[int, int], ...]
    """Widths and heights; the first one is that of the equal shapes."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One prompt."""

    prompt: str
    seed: int
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to draw all rows."""

    name: str
    ready: Callable[[Path], Callable[[], None]]
    """Prepares a turn in an empty folder, and returns what is timed: it leaves all images in that folder."""


def demo_scale(folder: Path, device: str, dtype: torch.dtype) -> Scale:
    """Return the demo's base model, which is in git, at about 32 x 32 pixels: for a CPU."""
    english, _ = base.unpack(folder)
    bundle = models.load_bundle(english, device, dtype)
    return Scale(name="the demo's base", bundle=bundle, sizes=((32, 32), (48, 32), (32, 48), (40, 40)))


def real_scale(folder: Path, device: str, dtype: torch.dtype, *, tiny: bool = False) -> Scale:
    """Return Stable Diffusion 2.1 behind m18's text encoder with random weights, at about 512 x 512 pixels.

    Args:
        tiny: the same blocks at a tenth of their width, for 64 x 64 pixels: to run every line on a CPU.
    """
    unet, vae, text = models.unet_config_sd21(), models.vae_config_sd21(), models.text_config_m18()
    sizes: tuple[tuple[int, int], ...] = ((512, 512), (640, 384), (384, 640), (768, 512))
    if tiny:
        unet |= {
            "block_out_channels": (32, 64, 64, 64), "attention_head_dim": (1, 2, 2, 2), "cross_attention_dim": 64,
        }  # fmt: skip
        vae |= {"block_out_channels": (32, 32, 32, 32)}
        text |= {
            "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "project_dim": 64,
        }  # fmt: skip
        sizes = ((64, 64), (128, 64), (64, 128), (128, 128))
    torch.manual_seed(0)
    tokenizer = models.load_bundle(base.unpack(folder)[0]).tokenizer
    tokenizer.model_max_length = 77
    from diffusers import DDIMScheduler

    bundle = ModelBundle(
        unet=models.build_unet(unet, device).to(dtype),
        vae=models.build_vae(vae, device).to(dtype),
        text_encoder=models.build_text_encoder(text, device).to(dtype),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(**models.scheduler_config()),
    )
    return Scale(name="SD 2.1's blocks, tiny" if tiny else "SD 2.1's shapes", bundle=bundle, sizes=sizes)


def rows_of(scale: Scale, count: int, *, mixed: bool) -> list[Row]:
    """Return `count` different prompts, of sizes in a random order or of one size."""
    draw = np.random.default_rng(1)
    rows = []
    for number in range(count):
        noun, color = NOUNS[number % len(NOUNS)], COLORS[number // len(NOUNS) % len(COLORS)]
        width, height = scale.sizes[int(draw.integers(len(scale.sizes)))] if mixed else scale.sizes[0]
        rows.append(Row(prompt=f"a {color} {noun}, {number}", seed=number, width=width, height=height))
    return rows


def pipeline_loop(name: str, scale: Scale, rows: list[Row], settings: dict[str, Any], batch_rows: int) -> Contender:
    """Return a loop of `StableDiffusionPipeline` that saves PNG files.

    Args:
        batch_rows: 1 calls it per prompt; more groups the prompts by size, the best that a user writes.
    """
    from diffusers import StableDiffusionPipeline

    parts = scale.bundle
    pipeline = StableDiffusionPipeline(
        vae=parts.vae, text_encoder=parts.text_encoder, tokenizer=parts.tokenizer, unet=parts.unet,
        scheduler=parts.scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    device = pipeline.device

    def ready(folder: Path) -> Callable[[], None]:
        def draw() -> None:
            for some in _grouped(rows, batch_rows):
                images = pipeline(
                    prompt=[row.prompt for row in some],
                    width=some[0].width,
                    height=some[0].height,
                    num_inference_steps=settings["steps"],
                    guidance_scale=settings["guidance_scale"],
                    generator=[torch.Generator(device).manual_seed(row.seed) for row in some],
                ).images
                for row, image in zip(some, images, strict=True):
                    image.save(folder / f"{row.seed}.png")

        return draw

    return Contender(name=name, ready=ready)


def bare(name: str, scale: Scale, rows: list[Row], settings: dict[str, Any]) -> Contender:
    """Return the UNet's and the VAE's calls for the same batches, inputs made before: no text, sampler or files."""
    unet, vae = scale.bundle.unet, scale.bundle.vae
    parameter = next(unet.parameters())
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    width = int(unet.config.cross_attention_dim)
    tokens = int(scale.bundle.tokenizer.model_max_length)

    def ready(folder: Path) -> Callable[[], None]:
        del folder
        inputs: list[tuple[Tensor, Tensor]] = []
        for some in _grouped(rows, settings["batch_rows"]):
            shape = (2 * len(some), unet.config.in_channels, some[0].height // factor, some[0].width // factor)
            given = {"device": parameter.device, "dtype": parameter.dtype}
            inputs.append((torch.randn(shape, **given), torch.randn((shape[0], tokens, width), **given)))

        @torch.inference_mode()
        def draw() -> None:
            for latents, context in inputs:
                for timestep in range(settings["steps"]):
                    unet(latents, timestep, encoder_hidden_states=context, return_dict=False)
                vae.decode(latents[: len(latents) // 2], return_dict=False)

        return draw

    return Contender(name=name, ready=ready)


def _grouped(rows: list[Row], batch_rows: int) -> list[list[Row]]:
    """Return the rows one by one, or in batches of one size."""
    if batch_rows == 1:
        return [[row] for row in rows]
    sizes: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        sizes.setdefault((row.width, row.height), []).append(row)
    return [some[start : start + batch_rows] for some in sizes.values() for start in range(0, len(some), batch_rows)]
