"""What a config resolves to: a run with everything that it names found and pinned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from altdiffusion.diffusion.objective import SD, Noising
from altdiffusion.refs import Ref
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.order.run_key import SEED_ALONE, RunKey


@dataclass(frozen=True, kw_only=True)
class ResolvedRun:
    """A config with everything it names found and pinned. It is small and can be pickled: workers get it whole."""

    config: TrainConfig
    lake: str
    fingerprint: str
    """SHA-256 (hex) over what decides the result: semantic config, datasets' digests, content of the start."""
    datasets: tuple[Ref, ...]
    base: str
    """URI of the model folder that brings VAE, scheduler and the UNet's shape."""
    text_encoder: str | None
    """URI of the folder of another text encoder, or None for the base's."""
    start: Ref | None
    """The checkpoint whose weights it starts from, or None for the base's. A continued run has the start of the run
    that it continues."""
    start_fingerprint: str | None
    """Fingerprint of the run of that checkpoint."""
    models: tuple[Ref, ...]
    """The model folders that it rests on."""
    mirrored: tuple[Ref, ...] = ()
    """The datasets of mirrored latents, one for each dataset, where the run flips latents."""
    teacher: str | None = None
    """URI of the folder of a distillation's text tower with projection, or None for the base's own encoder."""
    continued: Ref | None = None
    """The checkpoint that it continues with everything, or None: it begins at step 0."""
    key: RunKey = SEED_ALONE
    """The key of all its draws."""
    lora_file: str | None = None
    """URI of the file of adapters that it begins with, or None: they begin with zeros."""
    lora_sha256: str | None = None
    """SHA-256 (hex) of that file."""
    noising: Noising = SD
    """What the UNet learns to predict, and its noise schedule."""
    meaning: Mapping[str, Any] = field(default_factory=dict)
    """The settings of the config that decide the result."""

    @property
    def seed(self) -> int:
        """Return the seed of all its draws, which the key is part of."""
        return self.key.seed(self.config.seed)

    @property
    def parents(self) -> tuple[Ref, ...]:
        """Return what a checkpoint of this run is made from."""
        origin = self.continued or self.start
        return (*self.datasets, *self.mirrored, *((origin,) if origin is not None else self.models))

    def versions(self) -> list[Version]:
        """Return the datasets, open for reading."""
        return [Lake(self.lake).version(ref) for ref in self.datasets]

    def mirrored_versions(self) -> dict[Ref, Version]:
        """Return the versions of mirrored latents, by their dataset."""
        return {ref: Lake(self.lake).version(other) for ref, other in zip(self.datasets, self.mirrored, strict=False)}
