"""The loop from noise to latents: `StableDiffusionPipeline.__call__` without its work per image.

Shapes: n rows of a batch, T text positions, D context width, C x H x W latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from altdiffusion.diffusion.models import ModelBundle
from altdiffusion.generation.image_request import Request
from altdiffusion.generation.schedulers import make_scheduler, settings_of
from altdiffusion.generation.settings import SamplerName


class Denoiser:
    """A model's UNet with the samplers that its noise schedule supports.

    Args:
        bundle: the model, on its device and in its dtype.
    """

    def __init__(self, bundle: ModelBundle) -> None:
        self._unet = bundle.unet
        self._schedule = settings_of(bundle.scheduler)
        self._scheduler_name: SamplerName | None = None
        self._scheduler: Any = None

    def denoise(
        self,
        rows: Sequence[Request],
        context: Tensor,
        negative: Tensor | None,
        noise: Tensor,
        compose: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, list[str]]:
        """Return latents, float32 [n, C, H, W], and where each row stopped being finite, empty for a good one.

        Args:
            rows: n requests of one form.
            context: [n, T, D] of the prompts.
            negative: [n, T, D] of the negative prompts; None where the rows are not guided.
            noise: float32 [n, C, H, W].
            compose: returns the guided noise of the whole images, in place of one pass over them (windows.py).
        """
        scheduler = self._scheduler_of(rows[0].sampler)
        scheduler.set_timesteps(rows[0].steps, device=noise.device)
        scale = guidance_scales(rows, noise.device) if negative is not None else None
        texts = context if negative is None else torch.cat((negative, context))
        latents = noise * scheduler.init_noise_sigma
        failed = torch.zeros(len(rows), dtype=torch.int64, device=noise.device)
        for number, timestep in enumerate(scheduler.timesteps, 1):
            inputs = scheduler.scale_model_input(latents, timestep)
            output = self.predict(inputs, timestep, texts, scale) if compose is None else compose(inputs, timestep)
            latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
            # A scheduler that clips would hide an infinity, so both are asked; nothing waits for the device here.
            good = torch.isfinite(output).flatten(1).all(1) & torch.isfinite(latents).flatten(1).all(1)
            failed = torch.where((failed == 0) & ~good, number, failed)
        calls = len(scheduler.timesteps)
        return latents, [f"the UNet's output at step {step} of {calls}" if step else "" for step in failed.tolist()]

    def predict(self, inputs: Tensor, timestep: Tensor, texts: Tensor, scale: Tensor | None) -> Tensor:
        """Return the noise that the UNet finds in n latents, with guidance, float32 [n, C, H, W].

        Args:
            inputs: float32 [n, C, H, W].
            texts: contexts [n, T, D]; with guidance those of the negative prompts before them, [2 n, T, D].
            scale: float32 [n], guidance; None where the rows are not guided.
        """
        doubled = inputs if scale is None else torch.cat((inputs, inputs))
        doubled = doubled.to(texts.dtype)
        output: Tensor = self._unet(doubled, timestep, encoder_hidden_states=texts, return_dict=False)[0].float()
        if scale is None:
            return output
        without, with_text = output.chunk(2)
        return without + scale[:, None, None, None] * (with_text - without)

    def _scheduler_of(self, name: SamplerName) -> Any:
        """Return the scheduler of a sampler; the last one is kept."""
        if self._scheduler_name != name:
            self._scheduler_name, self._scheduler = name, make_scheduler(name, self._schedule)
        return self._scheduler


def guidance_scales(rows: Sequence[Request], device: torch.device) -> Tensor:
    """Return the guidance of each row, float32 [n]."""
    return torch.tensor([row.guidance_scale for row in rows], device=device)
