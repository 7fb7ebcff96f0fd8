"""From latents to pixels, with a second try in float32 for what is not finite in the VAE's own dtype.

A panorama is decoded with columns of its other edge at each side, so that its edges meet.

Shapes: n rows of a batch, B rows of a full one, C x H x W latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from altdiffusion.diffusion.autoencoder import decode, decode_in_float32
from altdiffusion.generation.image_request import Drawn

WRAPPED = 8
"""Columns of the other edge that are decoded at each side of a panorama, and then cut off, as in diffusers."""


class Decoder:
    """A model's VAE.

    Args:
        vae: `AutoencoderKL`, on its device and in its dtype.
        batch_rows: B.
        fallback: whether an image that is not finite in the VAE's own dtype is decoded again in float32.
        tile: side in pixels of the tiles in which larger images are decoded, by diffusers' own tiling: they overlap by
            a quarter and are blended; None decodes any image as a whole.
    """

    def __init__(self, vae: Any, batch_rows: int, *, fallback: bool = True, tile: int | None = None) -> None:
        self._vae = vae
        if tile is not None:
            vae.enable_tiling()
            vae.tile_sample_min_size, vae.tile_latent_min_size = tile, tile // vae_factor(vae)
        self._batch_rows = batch_rows
        self._fallback = fallback

    def decode(self, latents: Tensor, problems: Sequence[str], *, circular: bool = False) -> list[Drawn]:
        """Return the results of n rows.

        Args:
            latents: float32 [n, C, H, W].
            problems: [n] what went wrong earlier with each row; such rows are not decoded a second time.
            circular: whether the left edge continues the right one.
        """
        wrapped = min(WRAPPED, latents.shape[-1]) if circular else 0
        if wrapped:
            latents = torch.cat((latents[..., -wrapped:], latents, latents[..., :wrapped]), -1)
        dtype = next(self._vae.parameters()).dtype
        decoded = decode(self._vae, latents)
        good = finite(decoded)
        again = [place for place, problem in enumerate(problems) if not problem and not good[place]]
        if not self._fallback or dtype == torch.float32:
            again = []
        if again:
            filling = latents[-1:].expand(self._batch_rows - len(latents), *latents.shape[1:])
            decoded[again] = decode_in_float32(self._vae, torch.cat((latents, filling)))[again]
            good = finite(decoded)
        cut = wrapped * vae_factor(self._vae)
        decoded = decoded[..., cut : decoded.shape[-1] - cut]
        return [
            Drawn(
                image=image,
                problem=problem or ("" if good[place] else "the VAE's output"),
                vae_dtype="float32" if place in again else None,
            )
            for place, (image, problem) in enumerate(zip(_pixels(decoded), problems, strict=True))
        ]


def vae_factor(vae: Any) -> int:
    """Return the number of pixels per latent, along each side."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def finite(values: Tensor) -> list[bool]:
    """Return whether all values of each row are finite, [n, ...] -> [n]."""
    good: list[bool] = torch.isfinite(values).flatten(1).all(1).tolist()
    return good


def _pixels(decoded: Tensor) -> NDArray[np.uint8]:
    """Return images, uint8 [n, height, width, 3], of values around -1..1, float32 [n, 3, height, width]."""
    pixels = (decoded.nan_to_num() / 2 + 0.5).clamp(0, 1).mul(255).round()
    image: NDArray[np.uint8] = pixels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return image
