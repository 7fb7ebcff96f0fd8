"""Pixels for the judge: real images as squares of its side, and the same through the generator's VAE.

Shapes: N images, S = the judge's side in pixels.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from altdiffusion.diffusion.autoencoder import load_autoencoder
from altdiffusion.evaluation.judge import signed
from altdiffusion.evaluation.labels import LabelledImages, Use

_PIXELS = 64 * 32**2  # per pass of the VAE


@dataclass(frozen=True, kw_only=True, eq=False)
class RealImages:
    """Distinct labelled images of one use."""

    pixels: NDArray[np.uint8]
    """[N, S, S, 3]"""
    shown: NDArray[np.str_]
    """[N] the concept that each shows."""

    def __len__(self) -> int:
        return len(self.shown)

    def only(self, concepts: NDArray[np.str_]) -> RealImages:
        """Return the images that show one of these concepts."""
        chosen = np.isin(self.shown, concepts)
        return RealImages(pixels=self.pixels[chosen], shown=self.shown[chosen])


def read_images(labelled: LabelledImages, side: int) -> Mapping[Use, RealImages]:
    """Return the labelled images of each use, in the order of their first rows; a use without images is left out."""
    table = labelled.table
    rows = zip(*(table[name].to_pylist() for name in ("image_sha256", "concept", "use")), strict=True)
    waiting = {sha256: (concept, use) for sha256, concept, use in rows}
    found: dict[Use, tuple[list[NDArray[np.uint8]], list[str]]] = {}
    for version in labelled.versions:
        for shard in version.iter_tables(["image", "image_sha256"]):
            for sha256, body in zip(shard["image_sha256"].to_pylist(), shard["image"], strict=True):
                label = waiting.pop(sha256, None)
                if label is not None:
                    pixels, shown = found.setdefault(label[1], ([], []))
                    pixels.append(_square(body.as_py(), side))
                    shown.append(label[0])
    return {use: RealImages(pixels=np.stack(pixels), shown=np.array(shown)) for use, (pixels, shown) in found.items()}


class Codec:
    """The generator's VAE, through which real images become like drawn ones: encoded (mode) and decoded.

    Args:
        folder: of the VAE.
        device: `cpu` or `cuda`.
    """

    def __init__(self, folder: str, device: str = "cpu") -> None:
        self._vae: Any = load_autoencoder(folder).to(device)
        self._device = device

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return images [N, S, S, 3], S a multiple of 8, as they come out of the VAE."""
        parts = [torch.zeros(0, 3, *images.shape[1:3], dtype=torch.uint8)]
        with torch.no_grad():
            for part in torch.from_numpy(images).split(max(1, _PIXELS // images.shape[1] ** 2)) if len(images) else ():
                latents = self._vae.encode(signed(part.to(self._device))).latent_dist.mode()
                decoded = self._vae.decode(latents).sample.clamp(-1, 1)
                parts.append(((decoded + 1) * 127.5).round().to(torch.uint8).cpu())
        return np.asarray(torch.cat(parts).permute(0, 2, 3, 1).numpy())


def small_images(bodies: list[bytes], side: int) -> NDArray[np.uint8]:
    """Decode images and return them as squares, uint8 [N, S, S, 3]."""
    return np.stack([_square(body, side) for body in bodies]) if bodies else np.zeros((0, side, side, 3), np.uint8)


def _square(body: bytes, side: int) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(io.BytesIO(body)) as image:
        rgb = image.convert("RGB")
    shorter = min(rgb.size)
    left, top = (rgb.width - shorter) // 2, (rgb.height - shorter) // 2
    square = rgb.crop((left, top, left + shorter, top + shorter))
    if shorter != side:
        square = square.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(square, np.uint8)
