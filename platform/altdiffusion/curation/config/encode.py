"""How an image becomes a latent and a caption token ids, and which images do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from altdiffusion.config import operational


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeConfig:
    """How an image becomes a latent and a caption token ids."""

    vae: str = operational()
    """Local folder of a diffusers AutoencoderKL."""
    vae_digest: str | None = None
    """Its `folder_digest`; checked before loading where given."""
    tokenizer: str = operational()
    """Local folder of a transformers tokenizer."""
    tokenizer_digest: str | None = None
    resolution: int = 256
    """Pixels of the square that is encoded."""
    seed: int = 0
    """Key of the crop (and of the noise, for `sample`) together with the row's sample_id."""
    latent: Literal["mode", "sample"] = "mode"
    """`mode`: the mean of the VAE's distribution; `sample`: mean + std x keyed normal noise. Scaled either way."""
    max_length: int = 77
    """Token ids a caption, padded and truncated to this."""
    micro_batch: int = 16
    """Images in one VAE pass; always full (padded), because kernels round differently at other batch sizes."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = operational("cpu")
    threads: int = operational(4)
    """Decode and crop images ahead of the VAE; 0 does it in the VAE's own thread."""
    rows_per_unit: int = 10_000

    def __post_init__(self) -> None:
        for name in ("resolution", "max_length", "micro_batch", "rows_per_unit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1; give a positive number")
        if self.threads < 0:
            raise ValueError("threads: must not be negative; give 0 to decode in the VAE's own thread")
        if self.resolution % 8:
            raise ValueError("resolution: is not a multiple of 8; give e.g. 256")


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketsConfig:
    """Shapes of one area to choose from, in place of the square (see curation.encoding.buckets)."""

    step: int = 64
    """Sides are multiples of this; 64 suits a UNet that halves three times behind a VAE of factor 8."""
    max_aspect: float = 2.0
    """Longer side to shorter side of the longest bucket."""

    def __post_init__(self) -> None:
        if self.step < 8 or self.step % 8:
            raise ValueError("step: is not a multiple of 8; give e.g. 64")
        if not 1 <= self.max_aspect <= 8:
            raise ValueError("max_aspect: must lie in [1, 8]; give e.g. 2")


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterConfig:
    """Which scores an image needs. A null threshold switches its filter off; comparisons are strict, like LAION's."""

    aesthetic_v1_above: float | None = None
    """LAION's Aesthetics V1 takes 7."""
    aesthetic_v2_above: float | None = None
    """On a scale of its own: not V1's."""
    nsfw_below: float | None = None
    watermark_below: float | None = None
    keep_null: tuple[Literal["aesthetic_v1", "aesthetic_v2", "nsfw", "watermark"], ...] = ()
    """Scores that let a row pass where they are null; elsewhere a null drops the row."""

    @property
    def thresholds(self) -> dict[str, float]:
        """By score, those that are switched on."""
        found = {
            "aesthetic_v1": self.aesthetic_v1_above,
            "aesthetic_v2": self.aesthetic_v2_above,
            "nsfw": self.nsfw_below,
            "watermark": self.watermark_below,
        }
        return {name: value for name, value in found.items() if value is not None}
