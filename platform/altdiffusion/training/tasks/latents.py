"""Where a diffusion stage's latents come from: stored ones, or images through the VAE in the loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from altdiffusion.diffusion.latent_sample import moments, scaled
from altdiffusion.diffusion.models import ModelBundle
from altdiffusion.training.config import OnlineConfig
from altdiffusion.training.data.images import image_layout
from altdiffusion.training.data.layout import LATENTS, Layout
from altdiffusion.training.data.loader import Samples
from altdiffusion.training.data.token_check import TokenColumn


class LatentSource(Protocol):
    """How samples become latents."""

    layout: Layout
    tokens: Sequence[TokenColumn]
    """The columns of token ids in the rows; none where captions are tokenized as they are read."""

    def __call__(self, samples: Samples) -> Tensor:
        """Return scaled latents, float32 [B, C, H, W] on the device."""
        ...

    def shape(self, samples: Samples) -> tuple[int, ...]:
        """Return (C, H, W)."""
        ...


class StoredLatents:
    """Latents that the encode job wrote: `latents` float16 [B, C, H, W]."""

    layout = LATENTS

    def __init__(self, tokenizer: Any, device: torch.device) -> None:
        self._device = device
        self.tokens: Sequence[TokenColumn] = [TokenColumn(ids="token_ids", text="caption", tokenizer=tokenizer)]

    def __call__(self, samples: Samples) -> Tensor:
        return samples["latents"].to(self._device, non_blocking=True).float()

    def shape(self, samples: Samples) -> tuple[int, ...]:
        return tuple(samples["latents"].shape[1:])


class OnlineLatents:
    """The VAE's encoder in the loop: `pixels` uint8 [B, R, R, 3] and `sample_ids` int64 [B].

    Args:
        config: with a seed; the run's own where the config's is null.

    With the encode job's settings these are the latents that it would have written, rounded to float16 as it does;
    kernels may round the last bit differently for another number of images at once.
    """

    tokens: Sequence[TokenColumn] = ()

    def __init__(self, config: OnlineConfig, bundle: ModelBundle, device: torch.device) -> None:
        assert config.seed is not None
        self._seed = config.seed
        self._config, self._device, self._vae = config, device, bundle.vae.eval().requires_grad_(False)
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
        for part in (self._vae.encoder, self._vae.quant_conv):  # the decoder stays where it is
            if part is not None:
                part.to(device, dtype)
        self.layout: Layout = image_layout(config, bundle.tokenizer)

    def __call__(self, samples: Samples) -> Tensor:
        config, keys = self._config, samples["sample_ids"]
        with torch.no_grad():
            mean, std = moments(self._vae, samples["pixels"].to(self._device, non_blocking=True))
            return scaled(self._vae, mean, std, config.latent, seed=self._seed, keys=keys).half().float()

    def shape(self, samples: Samples) -> tuple[int, ...]:
        side = samples["pixels"].shape[1] // 2 ** (len(self._vae.config.block_out_channels) - 1)
        return (int(self._vae.config.latent_channels), side, side)
