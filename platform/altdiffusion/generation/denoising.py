"""The loop from noise to latents: `StableDiffusionPipeline.__call__` without its work per image.

Shapes: n rows of a batch, T text positions, D context width, C x H x W latent.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from altdiffusion.diffusion.models import ModelBundle
from altdiffusion.generation.deep_cache import Unet
from altdiffusion.generation.image_request import Request
from altdiffusion.generation.on_host import to_device
from altdiffusion.generation.passes import Begin
from altdiffusion.generation.schedulers import make_scheduler, settings_of
from altdiffusion.generation.settings import SamplerName

Predict = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Returns the guided noise, float32 [m, C, h, w], of m latents at a timestep.

Its arguments: latents float32 [m, C, h, w]; the timestep; contexts [m, T, D], with guidance those of the negative
prompts before them, [2 m, T, D]; guidance, float32 [m], None where there is none.
"""
Compose = Callable[[Tensor, Tensor], Tensor]
"""Returns the guided noise of whole images, float32 [n, C, H, W], of what the UNet reads of them at a timestep."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Denoised:
    """What the loop gives for n rows, on the device."""

    latents: Tensor
    """float32 [n, C, H, W]."""
    failed: Tensor
    """int64 [n]: the first step at which a row is not finite, counted from 1; 0 for a good row."""
    steps: int
    """Number of the loop's steps; some samplers have one more than asked for."""

    def rows(self) -> Iterator[Denoised]:
        """Yield the rows one by one."""
        for row in range(len(self.latents)):
            one = slice(row, row + 1)
            yield Denoised(latents=self.latents[one], failed=self.failed[one], steps=self.steps)


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

    def begin(self) -> Predict:
        """Return what predicts the noise of the same latents at all steps of one batch, in their order."""
        unet = self._begin()
        return lambda inputs, timestep, texts, scale: _predict(unet, inputs, timestep, texts, scale)

    def denoise(
        self,
        rows: Sequence[Request],
        context: Tensor,
        negative: Tensor | None,
        noise: Tensor,
        compose: Compose | None = None,
    ) -> Generator[None, None, Denoised]:
        """Return the latents of n rows, and yield once before: when the first step is issued.

        Nothing here waits for the device, so that earlier results can be read there while it works on this step.

        Args:
            rows: n requests of one form.
            context: [n, T, D] of the prompts.
            negative: [n, T, D] of the negative prompts; None where the rows are not guided.
            noise: float32 [n, C, H, W].
            compose: predicts whole images, in place of one pass over them (windows.py).
        """
        scheduler = self._scheduler_of(rows[0].sampler)
        scheduler.set_timesteps(rows[0].steps)  # on the host, where the schedulers' own coefficients are
        on_device = to_device(scheduler.timesteps, noise.device)
        compose = compose or self._whole(rows, context, negative)
        latents = noise * scheduler.init_noise_sigma
        failed = torch.zeros(len(rows), dtype=torch.int64, device=noise.device)
        for number, timestep in enumerate(scheduler.timesteps, 1):
            inputs, time = scheduler.scale_model_input(latents, timestep), on_device[number - 1]
            output = compose(inputs, time)
            latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
            # A scheduler that clips would hide an infinity, so both are asked.
            good = torch.isfinite(output).flatten(1).all(1) & torch.isfinite(latents).flatten(1).all(1)
            failed = torch.where((failed == 0) & ~good, number, failed)
            if number == 1:
                yield
        return Denoised(latents=latents, failed=failed, steps=len(scheduler.timesteps))

    def _whole(self, rows: Sequence[Request], context: Tensor, negative: Tensor | None) -> Compose:
        """Return what predicts whole images in one pass; the arguments are those of `denoise`."""
        predict = self.begin()
        scale = guidance_scales(rows, context.device) if negative is not None else None
        texts = context if negative is None else torch.cat((negative, context))
        return lambda inputs, timestep: predict(inputs, timestep, texts, scale)

    def _scheduler_of(self, name: SamplerName) -> Any:
        """Return the scheduler of a sampler; the last one is kept."""
        if self._scheduler_name != name:
            self._scheduler_name, self._scheduler = name, make_scheduler(name, self._schedule)
        return self._scheduler


def guidance_scales(rows: Sequence[Request], device: torch.device) -> Tensor:
    """Return the guidance of each row, float32 [n]."""
    return to_device(torch.tensor([row.guidance_scale for row in rows]), device)


def _predict(unet: Unet, inputs: Tensor, timestep: Tensor, texts: Tensor, scale: Tensor | None) -> Tensor:
    """Return the noise that the UNet finds in latents, with guidance; arguments and result as in `Predict`."""
    doubled = inputs if scale is None else torch.cat((inputs, inputs))
    output: Tensor = unet(doubled.to(texts.dtype), timestep, encoder_hidden_states=texts, return_dict=False)[0].float()
    if scale is None:
        return output
    without, with_text = output.chunk(2)
    return without + scale[:, None, None, None] * (with_text - without)
