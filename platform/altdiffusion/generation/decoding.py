"""From latents to pixels, with a second try in float32 for what is not finite in the VAE's own dtype.

A panorama is decoded with columns of its other edge at each side, so that its edges meet.

Shapes: n rows of a batch, B rows of a full one, C x H x W latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from altdiffusion.diffusion.autoencoder import decode, decode_in_float32
from altdiffusion.generation.denoising import Denoised
from altdiffusion.generation.image_request import Drawn
from altdiffusion.generation.on_host import OnHost

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

    def decode(self, denoised: Denoised, readable: Tensor, *, circular: bool = False) -> Decoding:
        """Return the results of n rows, which need not be computed yet: nothing here waits for the device.

        Args:
            readable: bool [n], whether the contexts of a row were finite.
            circular: whether the left edge continues the right one.
        """
        latents = denoised.latents
        wrapped = min(WRAPPED, latents.shape[-1]) if circular else 0
        if wrapped:
            latents = torch.cat((latents[..., -wrapped:], latents, latents[..., :wrapped]), -1)
        decoded = self._inside(decode(self._vae, latents), wrapped)
        results = OnHost(_pixels(decoded), finite(decoded), denoised.failed, readable)
        return Decoding(self, latents, wrapped, denoised.steps, results)

    def again(self, latents: Tensor, wrapped: int) -> tuple[Tensor, Tensor] | None:
        """Return pixels and whether they are finite of n rows decoded in float32; None where that is not to be done."""
        if not self._fallback or next(self._vae.parameters()).dtype == torch.float32:
            return None
        filling = latents[-1:].expand(self._batch_rows - len(latents), *latents.shape[1:])
        with torch.inference_mode():
            decoded = decode_in_float32(self._vae, torch.cat((latents, filling)))[: len(latents)]
            decoded = self._inside(decoded, wrapped)
            return _pixels(decoded).cpu(), finite(decoded).cpu()

    def _inside(self, decoded: Tensor, wrapped: int) -> Tensor:
        """Return decoded images without the columns of latents that were put at each side."""
        cut = wrapped * vae_factor(self._vae)
        return decoded[..., cut : decoded.shape[-1] - cut]


@dataclass(frozen=True, slots=True)
class Decoding:
    """The results of a batch that the device may still work on."""

    _decoder: Decoder
    _latents: Tensor
    _wrapped: int
    _steps: int
    _results: OnHost

    def read(self) -> list[Drawn]:
        """Return the results of n rows, once they are computed; decode again what is not finite in the VAE alone."""
        pixels, good, failed, readable = self._results.read()
        problems = [
            _problem(step, self._steps) if fine else "the text encoder's output"
            for step, fine in zip(failed.tolist(), readable.tolist(), strict=True)
        ]
        again = [place for place, problem in enumerate(problems) if not problem and not good[place]]
        second = self._decoder.again(self._latents, self._wrapped) if again else None
        if second is not None:
            pixels, good = pixels.clone(), good.clone()  # tensors made in inference mode cannot be changed here
            pixels[again], good[again] = second[0][again], second[1][again]
        return [
            Drawn(
                image=image,
                problem=problem or ("" if fine else "the VAE's output"),
                vae_dtype="float32" if second is not None and place in again else None,
            )
            for place, (image, problem, fine) in enumerate(zip(pixels.numpy(), problems, good.tolist(), strict=True))
        ]


def vae_factor(vae: Any) -> int:
    """Return the number of pixels per latent, along each side."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def finite(values: Tensor) -> Tensor:
    """Return whether all values of each row are finite, [n, ...] -> bool [n]."""
    return torch.isfinite(values).flatten(1).all(1)


def _problem(step: int, steps: int) -> str:
    """Return what is wrong with a row whose latents are not finite from a step on; "" where that is 0."""
    return f"the UNet's output at step {step} of {steps}" if step else ""


def _pixels(decoded: Tensor) -> Tensor:
    """Return images, uint8 [n, height, width, 3], of values around -1..1, float32 [n, 3, height, width]."""
    pixels = (decoded.nan_to_num() / 2 + 0.5).clamp(0, 1).mul(255).round()
    return pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
