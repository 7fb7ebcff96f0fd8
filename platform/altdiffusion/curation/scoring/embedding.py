"""CLIP's image embedding of an image.

Preprocessing is that of `diffusion/clip_square.py`. Only the image's tower is loaded: the text's would be half the
memory.

Shapes: B images, S side of CLIP's input in pixels, D width of the embedding (ViT-L/14: S = 224, D = 768).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from altdiffusion.diffusion.clip_square import MEAN, STD, clip_square
from altdiffusion.diffusion.pinned_files import check_folder
from altdiffusion.diffusion.quiet import quiet_libraries
from altdiffusion.errors import AltDiffusionError

if TYPE_CHECKING:
    from PIL.Image import Image

Dtype = Literal["float32", "bfloat16", "float16"]


class ClipEmbedder:
    """The image's tower of a CLIP model with its projection."""

    def __init__(self, folder_uri: str, digest: str, *, device: str, dtype: Dtype) -> None:
        """Load the model.

        Raises:
            AltDiffusionError: another folder than pinned, or not a CLIP model.
        """
        import torch
        from transformers import AutoConfig, CLIPVisionModelWithProjection

        from altdiffusion.diffusion.weight_files import load_network, open_stock

        quiet_libraries()
        folder = check_folder(folder_uri, digest)
        self._name = folder_uri
        self._torch = torch
        self._device, self._dtype = torch.device(device), getattr(torch, dtype)
        config: Any = open_stock(AutoConfig, folder, f"model {folder_uri}", remedy="give the folder of a CLIPModel")
        if config.model_type == "clip":
            config, width = config.vision_config, config.projection_dim
            config.projection_dim = width  # the tower's own may be a default that the whole model does not use
        elif config.model_type != "clip_vision_model":
            raise AltDiffusionError(
                f"model {folder_uri}", f"is a {config.model_type}, not a CLIP model", "give the folder of a CLIPModel"
            )
        model = load_network(
            CLIPVisionModelWithProjection,
            Path(folder),
            f"model {folder_uri}",
            remedy="give the folder of a CLIPModel",
            unused=("text_model.", "text_projection.", "logit_scale"),  # of a whole CLIP
            config=config,
        )
        self._model: Any = model.to(self._device, self._dtype).eval().requires_grad_(False)
        self.side = int(self._model.config.image_size)
        self.width = int(self._model.config.projection_dim)
        # [1, 3, 1, 1] each
        self._mean, self._std = (torch.tensor(v, device=self._device).view(1, 3, 1, 1) for v in (MEAN, STD))

    def pixels(self, rgb: Image) -> npt.NDArray[np.uint8]:
        """Return what a batch is made of: uint8 [S, S, 3]."""
        return clip_square(rgb, self.side)

    def normalise(self, pixels: npt.NDArray[np.uint8]) -> Any:
        """Return a batch, uint8 [B, S, S, 3], normalised: float32 tensor [B, 3, S, S], on the device."""
        planes = self._torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).contiguous()
        return (planes.float() / 255.0 - self._mean) / self._std

    def embed(self, pixels: npt.NDArray[np.uint8]) -> Any:
        """Return the embeddings of a batch, uint8 [B, S, S, 3]: float32 tensor [B, D], rows of length 1, on the device.

        Raises:
            AltDiffusionError: an embedding is not finite.
        """
        torch = self._torch
        with torch.inference_mode():
            embeddings = self._model(pixel_values=self.normalise(pixels).to(self._dtype)).image_embeds.float()
            embeddings = embeddings / embeddings.norm(dim=-1, keepdim=True)
            if not bool(torch.isfinite(embeddings).all()):
                raise AltDiffusionError(
                    f"model {self._name}", "made an embedding that is not finite", "use bfloat16 or float32"
                )
            return embeddings
