"""The judge of images and texts: a CLIP model whose embeddings of both can be compared.

`CLIPModel` reads English; `AltCLIPModel` (Chen et al.: "AltCLIP: altering the language encoder in CLIP for extended
language capabilities", 2022) has XLM-RoBERTa as its text encoder. Images are prepared as CLIP's are for both.

Shapes: B images or texts, S side of the image input, L tokens, D width of the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from altdiffusion.diffusion.clip_square import MEAN, STD, clip_square
from altdiffusion.diffusion.weight_files import load_network
from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.measures.judge_tokens import REMEDY, JudgeTokens
from altdiffusion.evaluation.measures.settings import Dtype, JudgeConfig

if TYPE_CHECKING:
    from PIL.Image import Image

Floats = NDArray[np.float32]


class Judge:
    """A loaded judge."""

    def __init__(self, config: JudgeConfig, *, device: str, dtype: Dtype) -> None:
        """Load the model and its tokenizer.

        Raises:
            AltDiffusionError: another folder than pinned, another kind of model, or fewer token positions than
                configured.
        """
        import torch
        import transformers

        self._torch, self._config = torch, config
        self._device, self._dtype = torch.device(device), getattr(torch, dtype)
        self._tokens = JudgeTokens(config)
        kind = {"clip": transformers.CLIPModel, "altclip": transformers.AltCLIPModel}[self._tokens.kind]
        model: Any = load_network(kind, self._tokens.folder, self._tokens.what, remedy=REMEDY)
        self._model = model.to(self._device, self._dtype).eval().requires_grad_(False)
        self.side = int(model.config.vision_config.image_size)
        self._mean, self._std = (torch.tensor(v, device=self._device).view(1, 3, 1, 1) for v in (MEAN, STD))

    def pixels(self, rgb: Image) -> NDArray[np.uint8]:
        """Return what a batch of images is made of: uint8 [S, S, 3]."""
        return clip_square(rgb, self.side)

    def embed_images(self, pixels: NDArray[np.uint8]) -> Floats:
        """Return the embeddings of images, uint8 [B, S, S, 3]: float32 [B, D], rows of length 1.

        Raises:
            AltDiffusionError: an embedding is not finite.
        """
        torch = self._torch
        with torch.inference_mode():
            planes = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).contiguous().float() / 255.0
            planes = ((planes - self._mean) / self._std).to(self._dtype)
            return self._of_length_1(self._model.get_image_features(pixel_values=planes).pooler_output)

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Return the embeddings of texts: float32 [B, D], rows of length 1.

        Raises:
            AltDiffusionError: an embedding is not finite.
        """
        tokens = self._tokens(texts)
        with self._torch.inference_mode():
            made = self._model.get_text_features(**{name: ids.to(self._device) for name, ids in tokens.items()})
            return self._of_length_1(made.pooler_output)

    def _of_length_1(self, embeddings: Any) -> Floats:
        embeddings = embeddings.float()
        embeddings = embeddings / embeddings.norm(dim=-1, keepdim=True)
        values: Floats = embeddings.cpu().numpy()
        if not np.isfinite(values).all():
            raise AltDiffusionError(
                f"judge {self._config.folder}", "made an embedding that is not finite", "use bfloat16 or float32"
            )
        return values
