"""Images instead of latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from altdiffusion.config import operational
from altdiffusion.constraints import Checked, at_least, multiple_of


@dataclass(frozen=True, kw_only=True, slots=True)
class OnlineConfig(Checked):
    """Images instead of latents: the datasets are of kind `images`, and the base's VAE is part of the loop.

    Settings mean what they mean in the encode job: with the same ones the UNet learns from the same latents.
    """

    resolution: Annotated[int, multiple_of(8, "give e.g. 256")] = 256
    """Pixels per side of the square crop."""
    seed: int | None = None
    """Key of the crop (and of the noise, for `sample`) together with the row's sample_id: with the encode job's, the
    UNet learns from the same latents. Null: keyed by the run, so that another run or stage has other crops."""
    latent: Literal["mode", "sample"] = "mode"
    """`mode`: the mean of the VAE's distribution; `sample`: mean + std x keyed normal noise."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the VAE's encoder."""
    threads: Annotated[int, at_least(1, "give about the CPUs of a worker")] = operational(4)
    """Threads of a worker that decode and crop images."""
