"""A small lake to measure in: images drawn for 16 concepts in three languages, and real images."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from altdiffusion.storage.dataset import Lake, Version
from tests import lineage_lake
from tests.measure_networks import save_judge, save_network

CODES = ("en", "de", "ja")
CONCEPTS = 16
REAL = 20
WORDS = [f"{code}{number}" for code in CODES for number in range(CONCEPTS)]


def png(seed: int) -> bytes:
    """Return a random image; sizes differ."""
    values = np.random.default_rng(seed).integers(0, 256, (9 + seed % 3, 8 + seed % 5, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(values).save(out, "PNG")
    return out.getvalue()


def prompts() -> list[dict[str, Any]]:
    return [
        {"id": f"c{n}-{code}", "concept": f"c{n}", "language": code, "prompt": f"{code}{n}", "seen": True}
        for n in range(CONCEPTS)
        for code in CODES
    ]


def make_lake(root: Path) -> str:
    """Make <root>/lake with the datasets drawn and real, a checkpoint, cases.jsonl, net.pt and judge; return it."""
    lake = Lake(str(root / "lake"))
    origin = lineage_lake.checkpoint(lake, "m18", 100, "quality", [], {"loss": 0.5})
    drawn = []
    for number, row in enumerate(prompts()):
        body = png(number)
        drawn.append(
            {
                "id": row["id"], "language": row["language"], "prompt": row["prompt"], "seed": number, "image": body,
                "image_sha256": hashlib.sha256(body).hexdigest(), "checkpoint": str(origin),
            }
        )  # fmt: skip
    lineage_lake.publish(lake, "drawn", "generations", drawn, [origin])
    real = []
    for number in range(2 * REAL):  # each image twice, once per language
        body = png(1000 + number % REAL)
        real.append(
            {
                "sample_id": number, "language": CODES[number // REAL], "image": body,
                "image_sha256": hashlib.sha256(body).hexdigest(),
            }
        )  # fmt: skip
    lineage_lake.publish(lake, "real", "images", real, [])
    (root / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts()), encoding="utf-8")
    return lake.uri


def settings(root: Path, **changes: Any) -> dict[str, Any]:
    """Return settings of every measure; the networks are written on the first call."""
    network, judge = root / "net.json", root / "judge.json"
    if not network.exists():
        network.write_text(json.dumps(save_network(root / "net.pt")))
        judge.write_text(json.dumps(save_judge(root / "judge", WORDS, kind="altclip") | {"languages": list(CODES)}))
    tree: dict[str, Any] = {
        "measures": ["fid", "kid", "is", "cmmd", "clip_sim_english", "clip_sim_native", "retrieval"],
        "network": json.loads(network.read_text()), "judge": json.loads(judge.read_text()), "reference": "real",
        "kid_block": 5, "splits": 4, "recall_at": [1, 5], "batch": 4, "rows_per_unit": 7, "threads": 2,
    }  # fmt: skip
    return tree | changes


def config(root: Path, lake: str, **changes: Any) -> dict[str, Any]:
    """Return the job's config as a tree."""
    tree = {
        "name": "measure", "lake": lake, "cases": str(root / "cases.jsonl"), "states": {"quality": "drawn"},
        "measures": settings(root), "output": str(root / "out"), "execution": {"backend": "inline"},
    }  # fmt: skip
    return tree | changes


def published(lake: str, name: str) -> Version:
    return Lake(lake).version(name)
