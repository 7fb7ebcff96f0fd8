"""Drawing of images with an exported model; each image is a function of its own row alone.

Shapes: N rows of a call, B `batch_rows`, T text positions, D context width, C x H x W latent, f the VAE's factor.

The loop is that of `StableDiffusionPipeline.__call__` without its work per image (a test checks that both are equal).
The initial noise is keyed by the row's seed. Matrix products may round differently in another batch shape, so every
batch has exactly B rows: the last one is filled up, and a text is encoded among B texts. Then the other rows of the
batch, and the place of a row in it, do not change a bit (measured on the CPU, and checked by a test).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from altdiffusion.diffusion.models import ModelBundle
from altdiffusion.diffusion.noise import INITIAL_NOISE, keyed_normal
from altdiffusion.diffusion.text_encoder import encode_text, tokenize
from altdiffusion.generation.schedulers import make_scheduler, settings_of
from altdiffusion.generation.settings import SamplerName

NOISE_KEY = 0
"""First half of the key of the initial noise; the row's seed is the other half."""


class Sampler:
    """A loaded model with fixed sampler settings.

    Args:
        bundle: the model, on its device and in its dtype.
        sampler, steps, guidance_scale: as in `GenerateConfig`.
        batch_rows: B.
    """

    def __init__(
        self, bundle: ModelBundle, *, sampler: SamplerName, steps: int, guidance_scale: float, batch_rows: int
    ) -> None:
        self._bundle = bundle
        self._scheduler = make_scheduler(sampler, settings_of(bundle.scheduler))
        self._steps = steps
        self._scale = guidance_scale
        self._batch_rows = batch_rows
        self._factor = 2 ** (len(bundle.vae.config.block_out_channels) - 1)
        self._device = next(bundle.unet.parameters()).device
        self._dtype = next(bundle.unet.parameters()).dtype
        self._empty: Tensor | None = None

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], width: int, height: int) -> NDArray[np.uint8]:
        """Return images of one size, uint8 [N, height, width, 3], for N prompts and N seeds."""
        images = np.empty((len(prompts), height, width, 3), np.uint8)
        for start in range(0, len(prompts), self._batch_rows):
            stop = min(start + self._batch_rows, len(prompts))
            filling = self._batch_rows - (stop - start)
            texts = [*prompts[start:stop], *[prompts[stop - 1]] * filling]
            keys = [*seeds[start:stop], *[seeds[stop - 1]] * filling]
            images[start:stop] = self._batch(texts, keys, width, height)[: stop - start]
        return images

    def initial_latents(self, seeds: Sequence[int], width: int, height: int) -> Tensor:
        """Return the noise before the scheduler's scaling, float32 [B, C, H, W], a function of seed and size alone."""
        shape = (self._bundle.unet.config.in_channels, height // self._factor, width // self._factor)
        keys = torch.tensor(list(seeds), dtype=torch.int64, device=self._device)
        return keyed_normal(NOISE_KEY, keys, INITIAL_NOISE, shape)

    def _batch(self, prompts: Sequence[str], seeds: Sequence[int], width: int, height: int) -> NDArray[np.uint8]:
        with torch.inference_mode():
            return self._images(prompts, seeds, width, height)

    def _images(self, prompts: Sequence[str], seeds: Sequence[int], width: int, height: int) -> NDArray[np.uint8]:
        latents = self._denoise(self._context(prompts), self.initial_latents(seeds, width, height))
        vae = self._bundle.vae
        decoded = vae.decode((latents / vae.config.scaling_factor).to(self._dtype), return_dict=False)[0].float()
        scaled = (decoded / 2 + 0.5).clamp(0, 1).mul(255).round()
        images: NDArray[np.uint8] = scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return images

    def _denoise(self, context: Tensor, noise: Tensor) -> Tensor:
        """Return latents, float32 [B, C, H, W], from context [B, T, D] and noise [B, C, H, W]."""
        scheduler, unet = self._scheduler, self._bundle.unet
        guided = self._scale > 1.0
        if guided:
            context = torch.cat((self._unconditional().expand_as(context), context))
        scheduler.set_timesteps(self._steps, device=self._device)
        latents = noise * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            doubled = torch.cat((latents, latents)) if guided else latents
            inputs = scheduler.scale_model_input(doubled, timestep).to(self._dtype)
            epsilon = unet(inputs, timestep, encoder_hidden_states=context, return_dict=False)[0].float()
            if guided:
                without, with_text = epsilon.chunk(2)
                epsilon = without + self._scale * (with_text - without)
            latents = scheduler.step(epsilon, timestep, latents, return_dict=False)[0]
        return latents

    def _context(self, prompts: Sequence[str]) -> Tensor:
        """Return the context [B, T, D] of B prompts; each distinct one is encoded once."""
        distinct = list(dict.fromkeys(prompts))
        encoded = self._encode([*distinct, *[""] * (self._batch_rows - len(distinct))])
        place = {prompt: index for index, prompt in enumerate(distinct)}
        return encoded[torch.tensor([place[prompt] for prompt in prompts], device=self._device)]

    def _unconditional(self) -> Tensor:
        """Return the context [1, T, D] of the empty text."""
        if self._empty is None:
            self._empty = self._encode([""] * self._batch_rows)[:1]
        return self._empty

    def _encode(self, texts: Sequence[str]) -> Tensor:
        bundle = self._bundle
        ids = tokenize(bundle.tokenizer, texts).to(self._device)
        return encode_text(bundle.text_encoder, ids, bundle.tokenizer.pad_token_id).to(self._dtype)
