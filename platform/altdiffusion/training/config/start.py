"""Where the weights come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from altdiffusion.config import operational
from altdiffusion.diffusion.hub import HubId, is_hub_id


@dataclass(frozen=True, kw_only=True, slots=True)
class StartConfig:
    """Where the weights come from: a model folder, with or without another text encoder, or an earlier run.

    Paths are operational: what counts is the content, whose digest enters the run's fingerprint.
    """

    base: str | None = operational(None)
    """URI of a model folder (diffusers layout), or a hub model at one commit: hf://owner/name@<40 hex digits>."""
    text_encoder: str | None = operational(None)
    """URI of a folder with another text encoder and its tokenizer, or a hub model at one commit; null keeps the
    base's. AltDiffusion-m18 and AltCLIP-m18 are taken as published and converted."""
    checkpoint: str | None = None
    """Name of a run in the same lake: starts from its newest verified checkpoint, and keeps its other models."""
    weights: Literal["ema", "raw"] = "ema"
    """Which of that checkpoint's weights: the averages (`ema`), or the non-EMA weights (`raw`)."""

    def __post_init__(self) -> None:
        if self.base is not None and self.checkpoint is not None:
            raise ValueError("base: exactly one of base and checkpoint must be given; name a model folder or a run")
        for name in ("base", "text_encoder"):
            uri = getattr(self, name)
            if uri is not None and is_hub_id(uri):
                try:
                    HubId.parse(uri)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None
        if self.text_encoder is not None and self.base is None and self.checkpoint is None:
            raise ValueError("base: is missing, with text_encoder given; name the model folder whose UNet reads it")
        if self.checkpoint is not None and self.text_encoder is not None:
            raise ValueError(
                "text_encoder: a checkpoint brings its own text encoder; leave it out, or start from a base"
            )
