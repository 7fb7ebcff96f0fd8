"""Where the weights come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from altdiffusion.config import operational
from altdiffusion.constraints import Checked, Invalid
from altdiffusion.training.config.hub_ids import unpinned


@dataclass(frozen=True, kw_only=True, slots=True)
class StartConfig(Checked):
    """Where the weights come from: a model folder, with or without another text encoder, or an earlier run.

    Paths are operational: what counts is the content, whose digest enters the run's fingerprint.
    """

    base: str | None = operational(None)
    """URI of a model folder (diffusers layout) or of a single file (.safetensors, with base_configs), or a hub model
    at one commit: hf://owner/name@<40 hex digits>, also with /<file>.safetensors after it."""
    base_configs: str | None = operational(None)
    """URI of a folder in diffusers' layout, or a hub model at one commit, with the configs, tokenizer and scheduler of
    a base that is a single file. Its weights are not read."""
    text_encoder: str | None = operational(None)
    """URI of a folder with another text encoder and its tokenizer, or a hub model at one commit; null keeps the
    base's. AltDiffusion-m18 and AltCLIP-m18 are taken as published and converted."""
    lora: str | None = operational(None)
    """URI of a file of adapters (.safetensors, in diffusers' or kohya's layout), or a hub model at one commit, that a
    run of adapters begins with; null begins with adapters that change nothing."""
    checkpoint: str | None = None
    """Name of a run in the same lake: starts from its newest verified checkpoint, and keeps its other models."""
    weights: Literal["ema", "raw"] = "ema"
    """Which of that checkpoint's weights: the averages (`ema`), or the non-EMA weights (`raw`)."""

    def conflicts(self) -> Iterator[Invalid]:
        if self.base is not None and self.checkpoint is not None:
            yield Invalid("base", "exactly one of base and checkpoint must be given", "name a model folder or a run")
        yield from unpinned(self, "base", "base_configs", "text_encoder", "lora")
        if self.base_configs is not None and self.base is None:
            yield Invalid("base_configs", "is given without a base", "name the single file in base, or leave it out")
        if self.text_encoder is not None and self.base is None and self.checkpoint is None:
            yield Invalid("base", "is missing, with text_encoder given", "name the model folder whose UNet reads it")
        if self.checkpoint is not None and self.text_encoder is not None:
            yield Invalid(
                "text_encoder",
                "is given with a checkpoint, and a checkpoint brings its own text encoder",
                "leave it out, or start from a base",
            )
