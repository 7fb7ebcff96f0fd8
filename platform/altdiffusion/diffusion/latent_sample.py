"""An image's latent: the mean of the autoencoder's distribution or a keyed sample from it, scaled.

Shapes: B images of W x H pixels have latents of C x h x w values.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from altdiffusion.diffusion.noise import LATENT_SAMPLE, keyed_normal

LatentKind = Literal["mode", "sample"]
"""`mode`: the mean of the autoencoder's distribution; `sample`: mean + std x keyed normal noise."""


def moments(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the latents, float32 [B, C, h, w] each.

    Args:
        pixels: uint8 [B, H, W, 3], on the VAE's device.
    """
    planes = pixels.permute(0, 3, 1, 2).contiguous()
    latent = vae.encode((planes.float() / 127.5 - 1.0).to(next(vae.encoder.parameters()).dtype)).latent_dist
    return latent.mean.float(), latent.std.float()


def scaled(vae: Any, mean: Tensor, std: Tensor, kind: LatentKind, *, seed: int, keys: Tensor) -> Tensor:
    """Return the UNet's training input, float32 [B, C, h, w]: (latent - shift) x scale, both from the VAE's config.

    Args:
        keys: int64 [B]; `seed` and the key of a sample determine its noise.
    """
    if kind == "sample":
        mean = mean + std * keyed_normal(seed, keys.to(mean.device), LATENT_SAMPLE, tuple(mean.shape[1:]))
    shift = vae.config.shift_factor
    return torch.mul(mean - float(shift or 0.0), float(vae.config.scaling_factor))
