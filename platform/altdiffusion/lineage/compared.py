"""The few settings of each kind of job that people compare: MLflow shows them as params.

MLflow prints all params of a run above its images and in every column of a comparison, so 80 of them hide the images.
The whole config is the run's artifact config.yaml.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping
from typing import Any

from altdiffusion.storage import files

COMPARED: Mapping[str, tuple[str, ...]] = {
    "import": ("dataset", "images.layout", "images.language", "images.store.image_size"),
    "curate": (
        "candidates",
        "links",
        "images",
        "balance.temperature",
        "balance.rows_per_language",
        "download.image_size",
        "download.resize_mode",
        "download.min_side",
        "distinct.within",
        "distinct.max_distance",
        "retry.passes",
    ),
    "encode": (
        "images",
        "scores",
        "latents",
        "encode.resolution",
        "encode.latent",
        "encode.max_length",
        "encode.dtype",
        "encode.seed",
        "mirrored",
    ),
    "score": ("images", "scores"),
    "parallel": ("pairs",),
    "train": (
        "train.run",
        "train.stage",
        "train.trainable",
        "train.continue_from",
        "train.start.checkpoint",
        "train.steps",
        "train.global_batch",
        "train.optimizer.lr",
        "train.caption_drop",
        "train.seed",
    ),
    "generate": (
        "prompts",
        "generations",
        "generate.model.run",
        "generate.model.step",
        "generate.model.folder",
        "generate.sampler",
        "generate.steps",
        "generate.guidance_scale",
        "generate.negative_prompt",
        "generate.dtype",
    ),
    "evaluate": (
        "cases",
        "images",
        "sampling.sampler",
        "sampling.steps",
        "sampling.guidance_scale",
        "sampling.count",
        "sampling.dtype",
        "seed",
    ),
    "measure": ("cases", "states", "measures.measures", "measures.reference"),
}
"""Job -> keys of its config. A job adds what the config does not state (digests of datasets, their resolution)."""

MAX_KEY = 250
MAX_VALUE = 5900  # MLflow takes 6000


def compared(job: str, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the params of a job that people compare; all of a job that is not listed, or a config without the keys."""
    flat = flatten(config)
    wanted = [key for key in flat if key.startswith(tuple(f"{key}." for key in COMPARED.get(job, ())))]
    few = {key: flat[key] for key in (*COMPARED.get(job, ()), *wanted) if flat.get(key, "null") not in ("null", "")}
    return few or flat


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a nested config as MLflow params: dotted keys, and values as text.

    A value that is too long is shortened and ends in the SHA-256 of the whole value.
    """
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, name))
            continue
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        if len(text) > MAX_VALUE:
            text = f"{text[: MAX_VALUE - 90]}... sha256 {files.sha256_hex(text.encode())}"
        flat[key_name(name)] = text
    return flat


def key_name(text: str) -> str:
    """Return `text` in the form that MLflow allows for keys.

    That is letters, digits and `_-. :/`, at most 250 characters, and not a path that leads elsewhere.
    """
    clean = re.sub(r"[^\w.\- :/]", "_", text, flags=re.ASCII)
    return posixpath.normpath(clean).lstrip("/.")[:MAX_KEY] or "_"
