"""The sampler of a job: its model loaded on the device, in the dtype and with the settings of the config."""

from __future__ import annotations

import torch

from altdiffusion.diffusion.models import ModelBundle, load_bundle
from altdiffusion.generation.adapters import merge
from altdiffusion.generation.even_rows import even_rows
from altdiffusion.generation.model import Model
from altdiffusion.generation.passes import prepare
from altdiffusion.generation.sampler import Sampler
from altdiffusion.generation.settings import GenerateConfig
from altdiffusion.generation.speed import check_compiler


def load_sampler(model: Model, config: GenerateConfig) -> Sampler:
    """Return the sampler of a model with its adapters; the number of threads holds for the whole process.

    Raises:
        AltDiffusionError: as `load_bundle`.
    """
    torch.set_num_threads(config.threads)
    bundle = load_bundle(model.uri, config.device, getattr(torch, config.dtype))
    merge(bundle, model.adapters)
    return make_sampler(bundle, config)


def make_sampler(bundle: ModelBundle, config: GenerateConfig) -> Sampler:
    """Return the sampler of a model that is on its device and in its dtype; its networks are set up in place."""
    check_compiler(config.speed, config.device)
    if config.device == "cpu" and config.batch_shapes == "proven" and not config.speed.compile:
        even_rows(bundle.unet, bundle.vae, config.batch_rows)
    return Sampler(
        bundle,
        sampler=config.sampler,
        steps=config.steps,
        guidance_scale=config.guidance_scale,
        batch_rows=config.batch_rows,
        batch_shapes=config.batch_shapes,
        vae_fallback=config.vae_fallback,
        windows=config.windows,
        vae_tiling=config.vae_tiling,
        prompt_windows=config.prompt_windows,
        begin=prepare(bundle, config.speed),
        full_batches=config.speed.compile,
    )
