"""Scorers: operators that add a column to images. Aesthetics from the source, or by CLIP ViT-L/14 and LAION's head.

The head (LAION-AI/aesthetic-predictor, V1) is linear on the L2-normalised image embedding of OpenAI's CLIP ViT-L/14:
score = w . e / |e| + b with w [1, 768]. Weights are pinned by SHA-256 and loaded without running code from them.

Shapes: B pictures, D = 768 projection width, S side of CLIP's input in pixels.
"""

from __future__ import annotations

import io
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from altdiffusion.curation.assets import check_folder, read_pinned
from altdiffusion.curation.config import ScoreConfig
from altdiffusion.errors import AltDiffusionError

# Mean and standard deviation of CLIP's training pictures (openai/CLIP, clip.py), RGB, of values 0 to 1.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class Scorer(Protocol):
    """Adds one number a picture."""

    requires: tuple[str, ...]
    """Columns it reads."""
    provides: str
    """Column it fills."""

    def score(self, images: pa.Table) -> pa.Array | pa.ChunkedArray:
        """float32 (nullable), one a row, in order."""


def make_scorer(config: ScoreConfig) -> Scorer:
    """Loads the scorer a config asks for, in the worker."""
    if config.scorer == "source":
        return SourceAestheticScorer()
    return ClipAestheticScorer(config)


class SourceAestheticScorer:
    """Passes the source's own aesthetic column through."""

    requires: tuple[str, ...] = ("aesthetic",)
    provides = "aesthetic_score"

    def score(self, images: pa.Table) -> pa.Array | pa.ChunkedArray:
        return images["aesthetic"].cast(pa.float32())


class ClipAestheticScorer:
    """CLIP's image embedding through LAION's linear head."""

    requires: tuple[str, ...] = ("image",)
    provides = "aesthetic_score"

    def __init__(self, config: ScoreConfig) -> None:
        if config.clip is None or config.head is None:
            raise AltDiffusionError("score", "clip needs its weights", "give score.clip and score.head")
        import torch
        from transformers import CLIPModel

        folder = check_folder(config.clip, config.clip_digest)
        self.config = config
        self._torch = torch
        self._device = torch.device(config.device)
        self._clip: Any = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        self._clip.to(self._device).eval()
        self._side = int(self._clip.config.vision_config.image_size)
        self._head = load_head(config.head, config.head_sha256, int(self._clip.config.projection_dim))
        self._head.to(self._device)

    def score(self, images: pa.Table) -> pa.Array | pa.ChunkedArray:
        """[rows] about 1 to 10."""
        scores: list[float] = []
        for start in range(0, images.num_rows, self.config.batch):
            bodies = images["image"].slice(start, self.config.batch).to_pylist()
            scores += self.score_pictures(bodies)
        return pa.array(scores, pa.float32())

    def score_pictures(self, bodies: list[bytes]) -> list[float]:
        """Scores of B encoded pictures."""
        torch = self._torch
        with torch.inference_mode():
            pixels = torch.from_numpy(np.stack([clip_pixels(body, self._side) for body in bodies])).to(self._device)
            pooled = self._clip.vision_model(pixel_values=pixels).pooler_output
            embedding = self._clip.visual_projection(pooled).float()  # [B, D]
            embedding = embedding / embedding.norm(dim=-1, keepdim=True)
            return [float(value) for value in self._head(embedding)[:, 0].cpu()]


def load_head(uri: str, sha256: str, width: int) -> Any:
    """LAION's linear head as a torch Linear(width, 1).

    Raises:
        AltDiffusionError: other bytes than pinned, or not a head for embeddings of this width.
    """
    import torch

    state = torch.load(io.BytesIO(read_pinned(uri, sha256)), map_location="cpu", weights_only=True)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    if shapes != {"weight": (1, width), "bias": (1,)}:
        raise AltDiffusionError(
            f"head {uri}", f"has {shapes}, not a weight [1, {width}] and a bias [1]", "use the head of this CLIP"
        )
    head = torch.nn.Linear(width, 1)
    head.load_state_dict(state)
    return head.eval().requires_grad_(False)


def clip_pixels(body: bytes, side: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """CLIP's preprocessing: shorter side to `side` (bicubic), centre square, normalised; float32 [3, S, S]."""
    from PIL import Image

    with Image.open(io.BytesIO(body)) as image:
        rgb = image.convert("RGB")
    scale = side / min(rgb.size)
    wide, high = (max(side, int(length * scale)) for length in rgb.size)
    rgb = rgb.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (wide - side) // 2, (high - side) // 2
    square = np.asarray(rgb.crop((left, top, left + side, top + side)), np.float32) / 255.0
    return ((square - np.array(_MEAN, np.float32)) / np.array(_STD, np.float32)).transpose(2, 0, 1).astype(np.float32)
