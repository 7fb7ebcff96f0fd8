"""The sampler of a job: its model loaded on the device, in the dtype and with the settings of the config."""

from __future__ import annotations

import torch

from altdiffusion.diffusion.models import ModelBundle, load_bundle
from altdiffusion.generation.even_rows import even_rows
from altdiffusion.generation.passes import prepare
from altdiffusion.generation.sampler import Sampler
from altdiffusion.generation.settings import GenerateConfig
from altdiffusion.generation.speed import check_compiler


def load_sampler(folder: str, config: GenerateConfig) -> Sampler:
    """Return the sampler of a model folder; the number of threads holds for the whole process.

    Raises:
        AltDiffusionError: as `load_bundle`.
    """
    torch.set_num_threads(config.threads)
    return make_sampler(load_bundle(folder, config.device, getattr(torch, config.dtype)), config)


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
        begin=prepare(bundle, config.speed),
        full_batches=config.speed.compile,
    )
