"""A small lake to evaluate in: a tiny model, labelled images of two concepts, and a config. Seconds, not minutes."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from altdiffusion.config import from_dict
from altdiffusion.diffusion import models
from altdiffusion.image_files.phash import phash_rgb
from altdiffusion.storage.dataset import Lake, Version
from pipelines.evaluate import EvaluateConfig
from tests import curation_lake, lineage_lake, training_lake

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


def write_real(lake: str, name: str, numbers: Sequence[int], *, alike: Mapping[int, int] | None = None) -> Version:
    """Publish `images`: sample i shows a smooth image of its own, or nearly that of `alike[i]`, in another file."""
    rows = []
    for number in numbers:
        body = curation_lake.image((alike or {}).get(number, number), (48, 48))
        pixels = np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))
        row = {"sample_id": number, "image": body, "image_sha256": f"{number:064x}", "phash": phash_rgb(pixels),
               "stored_width": 48, "stored_height": 48, "language": "en"}  # fmt: skip
        rows.append(row)
    return lineage_lake.publish(Lake(lake), name, "images", rows, [])


def write_labels(path: Path, labels: Sequence[tuple[int, str, str | None]]) -> str:
    """Write (sample_id, concept, use) rows."""
    ids, concepts, uses = zip(*labels, strict=True)
    pq.write_table(pa.table({"sample_id": ids, "concept": concepts, "use": pa.array(uses, pa.string())}), path)
    return str(path)


def train_on(lake: str, run: str, images: Version) -> dict[str, str]:
    """Leave what a run on these images leaves: latents, a checkpoint and an export of the base; return its model."""
    table = images.read(["sample_id", "image_sha256", "language"])
    latents = lineage_lake.publish(Lake(lake), f"{run}-latents", "latents", table.to_pylist(), [images.ref])
    base = lineage_lake.BASE
    ref = lineage_lake.checkpoint(Lake(lake), run, 1, "alignment", [base, latents.ref], {})
    export = Path(lake, "exports", run, "step-00000001")
    shutil.copytree(f"{lake}/models/base", export)
    (export / "lineage.json").write_text(json.dumps({"checkpoint": str(ref), "parents": [str(ref)]}))
    return {"run": run}
