"""A small lake to evaluate in: a tiny model, labelled images of two concepts, and a config. Seconds, not minutes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from altdiffusion.config import from_dict
from altdiffusion.diffusion import models
from pipelines.evaluate import EvaluateConfig
from tests import curation_lake, training_lake

CONCEPTS = ("cat", "dog")


def make_lake(root: Path) -> str:
    """Make <root>/lake with models/base, images, labels.parquet and cases.jsonl; return it."""
    lake = root / "lake"
    models.save_bundle(training_lake.bundle(), lake / "models" / "base")
    images = curation_lake.write_images(str(lake), range(4))
    ids = images.read(["sample_id"])["sample_id"]
    pq.write_table(pa.table({"sample_id": ids, "concept": [*CONCEPTS, *CONCEPTS]}), lake / "labels.parquet")
    write_cases(lake / "cases.jsonl", rows())
    return str(lake)


def rows(languages: Sequence[str] = ("en", "de"), concepts: Sequence[str] = CONCEPTS) -> list[dict[str, Any]]:
    """Return a case of each concept in each language."""
    return [
        {"id": f"{concept}-{language}", "language": language, "prompt": concept, "concept": concept, "seen": True,
         "seed": place, "width": 16, "height": 16}
        for place, concept in enumerate(concepts)
        for language in languages
    ]  # fmt: skip


def write_cases(path: Path, cases: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in cases), encoding="utf-8")
    return str(path)


def tree(lake: str, **changes: Any) -> dict[str, Any]:
    """Return the config of a job that draws with two states on this machine."""
    model = {"folder": f"{lake}/models/base"}
    settings: dict[str, Any] = {
        "lake": lake, "name": "night", "cases": f"{lake}/cases.jsonl", "labels": f"{lake}/labels.parquet",
        "autoencoder": f"{lake}/models/base/vae", "output": f"{lake}/out/table",
        "states": [{"name": "before", "model": model}, {"name": "after", "model": {**model}}],
        "sampling": {"steps": 1, "guidance_scale": 1.0, "batch_rows": 4}, "judge": {"steps": 2},
        "execution": {"backend": "inline"},
    }  # fmt: skip
    return settings | changes


def config(lake: str, **changes: Any) -> EvaluateConfig:
    return from_dict(EvaluateConfig, tree(lake, **changes))
