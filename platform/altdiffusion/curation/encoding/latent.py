"""A picture's latent: a keyed square of it through the VAE's encoder.

The shorter side is resized to the resolution (bilinear, antialiased), a square is cut out at a keyed place, and the
latent is stored, scaled by the VAE's factor: the distribution's mean (`mode`) or a keyed sample of it. Crop and noise
depend on (seed, sample_id) alone, and the VAE always sees a full micro-batch.

Shapes: B pictures, R resolution in pixels, C x H x W latent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from altdiffusion.curation.assets import check_folder
from altdiffusion.curation.config import EncodeConfig
from altdiffusion.diffusion.quiet import quiet_libraries
from altdiffusion.errors import AltDiffusionError

if TYPE_CHECKING:
    from PIL.Image import Image

LATENT_SAMPLE = 16
"""Stream of the noise in a sampled latent (`diffusion.noise` has the others)."""


def places(seed: int, sample_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Where each row's square lies, whatever the resolution: float32 [rows, 2] in [0, 1)."""
    import torch

    from altdiffusion.diffusion.noise import CROP, keyed_uniform

    found: npt.NDArray[np.float32] = keyed_uniform(seed, torch.tensor(sample_ids), CROP, (2,)).numpy()
    return found


def square(
    rgb: Image, resolution: int, place: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    """A picture -> uint8 [R, R, 3] and (top, left) of the square in the resized picture.

    `place` is two numbers in [0, 1): where along the free vertical and horizontal pixels the square lies.
    """
    from PIL import Image as Pillow

    scale = resolution / min(rgb.size)
    wide, high = (max(resolution, round(length * scale)) for length in rgb.size)
    if (wide, high) != rgb.size:
        rgb = rgb.resize((wide, high), Pillow.Resampling.BILINEAR)
    top, left = int(place[0] * (high - resolution + 1)), int(place[1] * (wide - resolution + 1))
    return np.asarray(rgb.crop((left, top, left + resolution, top + resolution))), (top, left)


class LatentEncoder:
    """The VAE's encoder."""

    def __init__(self, config: EncodeConfig) -> None:
        import torch
        from diffusers import AutoencoderKL

        quiet_libraries()
        folder = check_folder(config.vae, config.vae_digest)
        self.config = config
        self._torch = torch
        self._device = torch.device(config.device)
        self._dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
        self._vae: Any = AutoencoderKL.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        self._vae.decoder = torch.nn.Identity()  # half of the weights, and never used here
        self._vae.to(self._device, self._dtype).eval()
        shift = self._vae.config.shift_factor
        self._shift, self._scale = float(shift or 0.0), float(self._vae.config.scaling_factor)

    def encode(self, pixels: npt.NDArray[np.uint8], sample_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
        """Up to a micro-batch of squares, uint8 [B, R, R, 3], and their row ids -> latents float16 [B, C, H, W].

        Raises:
            AltDiffusionError: a latent is not finite.
        """
        from altdiffusion.diffusion.noise import keyed_normal

        torch, config, count = self._torch, self.config, len(pixels)
        full = np.zeros((config.micro_batch, *pixels.shape[1:]), np.uint8)
        full[:count] = pixels
        with torch.inference_mode():
            planes = torch.from_numpy(full).to(self._device).permute(0, 3, 1, 2).contiguous()
            found = self._vae.encode((planes.float() / 127.5 - 1.0).to(self._dtype)).latent_dist
            mean = found.mean[:count].float().cpu()
            if config.latent == "sample":
                noise = keyed_normal(config.seed, torch.tensor(sample_ids), LATENT_SAMPLE, tuple(mean.shape[1:]))
                mean = mean + found.std[:count].float().cpu() * noise
            scaled = (mean - self._shift) * self._scale
        if not bool(torch.isfinite(scaled).all()):
            raise AltDiffusionError("autoencoder", "made a latent that is not finite", "use float32, or another VAE")
        half: npt.NDArray[np.float16] = scaled.numpy().astype(np.float16)
        return half
