"""The latent of an image: its crop, passed through the VAE's encoder.

The image is resized and cropped at keyed offsets (`diffusion.image_crop`). What is stored is the mean of the VAE's
distribution (`mode`) or a keyed sample of it, scaled by the VAE's factor. Offsets and noise depend on (seed, sample_id)
alone, and the VAE always sees a full micro-batch.

Shapes: B images of W x H pixels, C x h x w latent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from altdiffusion.curation.config import EncodeConfig
from altdiffusion.diffusion.pinned_files import check_folder
from altdiffusion.errors import AltDiffusionError


class LatentEncoder:
    """The encoder of a VAE, on its device and ready to run."""

    def __init__(self, config: EncodeConfig) -> None:
        import torch

        from altdiffusion.diffusion.autoencoder import Autoencoder, load_autoencoder

        folder = check_folder(config.vae, config.vae_digest)
        self.config = config
        self._torch = torch
        self._device = torch.device(config.device)
        self._dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
        self._vae: Any = load_autoencoder(folder)
        self.identity = Autoencoder.of(self._vae)
        self._vae.decoder = torch.nn.Identity()  # half of the weights, never used here
        self._vae.to(self._device, self._dtype).eval()

    def encode(self, pixels: npt.NDArray[np.uint8], sample_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
        """Return the latents, float16 [B, C, h, w], of at most a micro-batch of images.

        Args:
            pixels: uint8 [B, H, W, 3].
            sample_ids: row ids, int64 [B], the keys of the noise.

        Raises:
            AltDiffusionError: a latent is not finite.
        """
        from altdiffusion.diffusion.latent_sample import moments, scaled

        torch, config, count = self._torch, self.config, len(pixels)
        full = np.zeros((config.micro_batch, *pixels.shape[1:]), np.uint8)
        full[:count] = pixels
        with torch.inference_mode():
            mean, std = (part[:count].cpu() for part in moments(self._vae, torch.from_numpy(full).to(self._device)))
            latents = scaled(self._vae, mean, std, config.latent, seed=config.seed, keys=torch.tensor(sample_ids))
        if not bool(torch.isfinite(latents).all()):
            raise AltDiffusionError("autoencoder", "made a latent that is not finite", "use float32, or another VAE")
        half: npt.NDArray[np.float16] = latents.numpy().astype(np.float16)
        return half
