"""The loop from noise to latents: `StableDiffusionPipeline.__call__` without its work per image.

Shapes: n rows of a batch, T text positions, D context width, C x H x W latent.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from altdiffusion.diffusion.models import ModelBundle
from altdiffusion.generation.image_request import Request
from altdiffusion.generation.on_host import to_device
from altdiffusion.generation.passes import Begin
from altdiffusion.generation.schedulers import make_scheduler, settings_of
from altdiffusion.generation.settings import SamplerName


@dataclass(frozen=True, kw_only=True, slots=True)
class Denoised:
    """What the loop gives for n rows, on the device."""

    latents: Tensor
    """float32 [n, C, H, W]."""
    failed: Tensor
    """int64 [n]: the first step at which a row is not finite, counted from 1; 0 for a good row."""
    steps: int
    """Number of the loop's steps; some samplers have one more than asked for."""


class Denoiser:
    """A model's UNet with the samplers that its noise schedule supports.

    Args:
        bundle: the model, on its device and in its dtype.
        begin: returns what is called in place of the UNet for one batch; None calls the UNet.
    """

    def __init__(self, bundle: ModelBundle, begin: Begin | None = None) -> None:
        self._begin = begin or (lambda: bundle.unet)
        self._schedule = settings_of(bundle.scheduler)
        self._scheduler_name: SamplerName | None = None
        self._scheduler: Any = None

    def denoise(
        self, rows: Sequence[Request], context: Tensor, negative: Tensor | None, noise: Tensor
    ) -> Generator[None, None, Denoised]:
        """Return the latents of n rows, and yield once before: when the first step is issued.

        Nothing here waits for the device, so that earlier results can be read there while it works on this step.

        Args:
            rows: n requests of one form.
            context: [n, T, D] of the prompts.
            negative: [n, T, D] of the negative prompts; None where the rows are not guided.
            noise: float32 [n, C, H, W].
        """
        scheduler = self._scheduler_of(rows[0].sampler)
        scheduler.set_timesteps(rows[0].steps)  # on the host, where the schedulers' own coefficients are
        on_device = to_device(scheduler.timesteps, noise.device)
        scales = torch.tensor([row.guidance_scale for row in rows])
        scale = to_device(scales, noise.device)[:, None, None, None]
        if negative is not None:
            context = torch.cat((negative, context))
        latents = noise * scheduler.init_noise_sigma
        failed = torch.zeros(len(rows), dtype=torch.int64, device=noise.device)
        unet = self._begin()
        for number, timestep in enumerate(scheduler.timesteps, 1):
            time = on_device[number - 1]
            doubled = latents if negative is None else torch.cat((latents, latents))
            inputs = scheduler.scale_model_input(doubled, timestep).to(context.dtype)
            output = unet(inputs, time, encoder_hidden_states=context, return_dict=False)[0].float()
            if negative is not None:
                without, with_text = output.chunk(2)
                output = without + scale * (with_text - without)
            latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
            # A scheduler that clips would hide an infinity, so both are asked.
            good = torch.isfinite(output).flatten(1).all(1) & torch.isfinite(latents).flatten(1).all(1)
            failed = torch.where((failed == 0) & ~good, number, failed)
            if number == 1:
                yield
        return Denoised(latents=latents, failed=failed, steps=len(scheduler.timesteps))

    def _scheduler_of(self, name: SamplerName) -> Any:
        """Return the scheduler of a sampler; the last one is kept."""
        if self._scheduler_name != name:
            self._scheduler_name, self._scheduler = name, make_scheduler(name, self._schedule)
        return self._scheduler
