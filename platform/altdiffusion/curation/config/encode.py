"""How an image becomes a latent and a caption becomes token ids, and which images are encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from altdiffusion.config import operational
from altdiffusion.constraints import Checked, at_least, between, multiple_of


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeConfig(Checked):
    """How an image becomes a latent and a caption becomes token ids."""

    vae: str = operational()
    """Folder, on this machine or any fsspec URI, of a diffusers AutoencoderKL."""
    vae_digest: str | None = None
    """Its `folder_digest`; checked before loading where given."""
    tokenizer: str = operational()
    """Folder, on this machine or any fsspec URI, of a transformers tokenizer."""
    tokenizer_digest: str | None = None
    """Its `folder_digest`; checked before loading where given."""
    resolution: Annotated[int, multiple_of(8)] = 256
    """Pixels of the square that is encoded."""
    seed: int = 0
    """Key of the crop (and of the noise, for `sample`) together with the row's sample_id."""
    latent: Literal["mode", "sample"] = "mode"
    """`mode`: the mean of the VAE's distribution; `sample`: mean + std x keyed normal noise. Scaled either way."""
    max_length: Annotated[int, at_least(1)] = 77
    """Token ids per caption; captions are padded and truncated to this."""
    micro_batch: Annotated[int, at_least(1)] = 16
    """Images per VAE pass; it is always full (padded), because kernels round differently at other batch sizes."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the VAE computes in; latents are stored as float16."""
    device: str = operational("cpu")
    """Device of the VAE: cpu, cuda, cuda:1."""
    threads: Annotated[int, at_least(0)] = operational(4)
    """Decode and crop images ahead of the VAE; 0 does it in the VAE's own thread."""
    rows_per_unit: Annotated[int, at_least(1)] = 10_000
    """Rows of one unit of work, which is repeated as a whole where a worker dies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketsConfig(Checked):
    """Shapes of one area to choose from, in place of the square (see curation.encoding.buckets)."""

    step: Annotated[int, multiple_of(8)] = 64
    """Sides are multiples of this; 64 suits a UNet that halves three times behind a VAE of factor 8."""
    max_aspect: Annotated[float, between(1, 8)] = 2.0
    """Longer side to shorter side of the longest bucket."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterConfig:
    """Which scores an image needs. A null threshold switches its filter off; comparisons are strict, like LAION's."""

    aesthetic_v1_above: float | None = None
    """LAION's Aesthetics V1 takes 7."""
    aesthetic_v2_above: float | None = None
    """On a scale of its own: not V1's."""
    nsfw_below: float | None = None
    """Rows with this NSFW score or a higher one are dropped; 0 to 1."""
    watermark_below: float | None = None
    """Rows with this watermark score or a higher one are dropped; 0 to 1."""
    keep_null: tuple[Literal["aesthetic_v1", "aesthetic_v2", "nsfw", "watermark"], ...] = ()
    """Scores that let a row pass where they are null; elsewhere a null drops the row."""

    @property
    def thresholds(self) -> dict[str, float]:
        """The thresholds that are switched on, by score."""
        every = {
            "aesthetic_v1": self.aesthetic_v1_above,
            "aesthetic_v2": self.aesthetic_v2_above,
            "nsfw": self.nsfw_below,
            "watermark": self.watermark_below,
        }
        return {name: value for name, value in every.items() if value is not None}
