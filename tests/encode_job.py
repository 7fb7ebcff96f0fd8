"""The encode job in this process, on a small autoencoder and a tokenizer of few words."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from altdiffusion.config import from_dict
from altdiffusion.execution.pipeline_step import run_pipeline_step
from altdiffusion.execution.progress import Progress
from altdiffusion.storage.dataset import Lake, Version
from pipelines.encode import EncodeJobConfig, pipeline_steps
from tests.curation_lake import save_tokenizer, save_vae


def save_models(root: Path) -> dict[str, str]:
    """Save an autoencoder (factor 4) and a tokenizer; return their settings."""
    return {"vae": save_vae(root / "vae"), "tokenizer": save_tokenizer(root / "tok")}


def job(lake: Path | str, models: Mapping[str, Any], **settings: Any) -> EncodeJobConfig:
    """Return the config of a job at 32 pixels in small batches; `settings` are top-level keys."""
    usual = {"resolution": 32, "max_length": 6, "micro_batch": 3}
    encode = {**usual, **models, **settings.pop("encode", {})}
    return from_dict(EncodeJobConfig, {"lake": str(lake), "encode": encode, **settings})


def run(config: EncodeJobConfig) -> dict[str, Version]:
    """Run the job's one pipeline step; return the versions by dataset."""
    quiet, (step,) = Progress("encode", stream=io.StringIO()), pipeline_steps(config)
    versions = run_pipeline_step(Lake(config.lake), step, backend="inline", progress=quiet)
    return {version.ref.name: version for version in versions}
