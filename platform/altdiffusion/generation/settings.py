"""Settings of generation: the model, the prompts and the sampler, and operational ones for location and speed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from altdiffusion.config import operational
from altdiffusion.languages import CODES
from altdiffusion.storage.documents import NAME

SamplerName = Literal["ddim", "dpmpp"]
Dtype = Literal["float32", "bfloat16", "float16"]
_DIGEST = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The generating model: exactly one of `folder` and `run`. Its content identifies it and is pinned by digest."""

    folder: str | None = operational(None)
    """URI of a model folder (diffusers layout)."""
    run: str | None = operational(None)
    """Name of a training run in the lake, whose newest export is used."""
    step: int | None = operational(None)
    """Step of another export of that run to use."""
    digest: str | None = None
    """Content digest (at least 8 hex digits) that the folder must have; any other folder is refused."""

    def __post_init__(self) -> None:
        if (self.folder is None) == (self.run is None):
            raise ValueError("folder: exactly one of folder and run must be given; name a model folder or a run")
        if self.run is not None and not NAME.fullmatch(self.run):
            raise ValueError("run: is not the name of a run; give a plain name, or a path as folder")
        if self.step is not None and (self.run is None or self.step < 0):
            raise ValueError("step: goes with run, and is not negative; leave it out for the newest export")
        if self.digest is not None and not _DIGEST.fullmatch(self.digest):
            raise ValueError("digest: is not 8 to 64 hex digits; copy it from the lineage of the model")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptsConfig:
    """The prompts file (.jsonl, .parquet, .csv): id, language, prompt and, unless given here, seed, width, height."""

    file: str = operational()
    """URI of the file, which is identified by its content."""
    default_seed: int | None = None
    """Seed of rows without one; null makes the seed mandatory."""
    default_size: int | None = None
    """Width and height, in pixels, of rows without them; null makes them mandatory."""
    max_prompt_bytes: int = 4096
    max_side: int = 2048
    """Largest width and height, in pixels."""
    languages: tuple[str, ...] = CODES

    def __post_init__(self) -> None:
        if self.default_size is not None and not 8 <= self.default_size <= self.max_side:
            raise ValueError("default_size: must be between 8 and max_side; use e.g. 512")
        if self.default_seed is not None and not -(2**63) <= self.default_seed < 2**63:
            raise ValueError("default_seed: does not fit 64 bits; use e.g. 0")
        if self.max_prompt_bytes < 1:
            raise ValueError("max_prompt_bytes: must be positive; use e.g. 4096")
        unknown = sorted(set(self.languages) - set(CODES))
        if unknown or not self.languages:
            raise ValueError(f"languages: {unknown or 'none'} unknown; use some of {', '.join(CODES)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateConfig:
    """One set of generated images.

    `batch_rows`, `threads` and `device` affect the result too, because sums in another order round differently. So
    every row is drawn in a batch of exactly that many rows, in every unit and pool.
    """

    model: ModelConfig
    prompts: PromptsConfig
    sampler: SamplerName = "ddim"
    """`ddim`: DDIM with eta 0; `dpmpp`: DPM-Solver++ (2M), as good in about half the steps."""
    steps: int = 50
    guidance_scale: float = 9.0
    """Classifier-free guidance; at 1 or below the unconditional half is not computed."""
    dtype: Dtype = "float32"
    """Type of the networks; latents and the sampler are float32."""
    batch_rows: int = 32
    """Number of images that are drawn at once."""
    rows_per_unit: int = 512
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1
    """CPU threads of one worker. More threads sum in another order, which changes a rare pixel; more workers do not."""
    image_files: bool = operational(True)
    """Also write every image as images/<sha256>.png next to the dataset's shards."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_rows", "rows_per_unit", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1; give a positive whole number")
        if self.steps > 1000:
            raise ValueError("steps: more than the noise schedule has; use e.g. 50")
        if not 0 <= self.guidance_scale <= 100:
            raise ValueError("guidance_scale: must be in [0, 100]; the published evaluation has 9")
        if self.rows_per_unit % self.batch_rows:
            raise ValueError(
                "rows_per_unit: is not a multiple of batch_rows, which wastes a part of each last batch; use a multiple"
            )
        if self.dtype == "float16" and self.device == "cpu":
            raise ValueError("dtype: float16 does not run on a CPU; use float32 or bfloat16")
