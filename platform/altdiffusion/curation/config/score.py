"""What is measured of a picture, and by which weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from altdiffusion.config import operational


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig:
    """Where `aesthetic_score` comes from."""

    scorer: Literal["source", "clip"] = "source"
    """`source` passes the source's own column through; `clip` is CLIP ViT-L/14 with LAION's linear head."""
    clip: str | None = operational(None)
    """Local folder of a transformers CLIPModel (safetensors)."""
    clip_digest: str | None = None
    """Its `folder_digest`: checked before loading."""
    head: str | None = operational(None)
    """URI of `sa_0_4_vit_l_14_linear.pth`."""
    head_sha256: str = "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba"
    batch: int = operational(64)
    """Pictures in one forward pass."""
    device: str = operational("cpu")

    def __post_init__(self) -> None:
        if self.scorer == "clip" and (self.clip is None or self.head is None or self.clip_digest is None):
            raise ValueError("scorer: clip needs its weights; give clip, clip_digest and head")
        if self.batch < 1:
            raise ValueError("batch: must be at least 1; give e.g. 64")
