"""A lake with the images of two models for the same prompts: those of A are red, those of B blue."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from tests.lineage_lake import publish

MODELS = ("night-first", "night-second")
CODES = ("en", "de", "ar")
PROMPTS = {"en": "a red apple", "de": "ein roter Apfel", "ar": "تفاحة حمراء"}


def image(model: str, number: int) -> bytes:
    """Return an image with a record, as generation writes it; number 3 is the same of both models."""
    record, out = PngInfo(), io.BytesIO()
    record.add_text("parameters", f"drawn by {model}" if number != 3 else "drawn by nobody")
    colour = (200, number, 0) if model == "a" or number == 3 else (0, number, 200)
    Image.new("RGB", (32, 32), colour).save(out, "PNG", pnginfo=record)
    return out.getvalue()


def make_lake(root: Path) -> str:
    """Make <root>/lake with the images of 17 prompts by A and of the first 16 by B; return it."""
    lake = Lake(str(root / "lake"))
    rows = {
        model: [
            {
                "id": f"p{k}-{CODES[k % 3]}", "language": CODES[k % 3], "prompt": PROMPTS[CODES[k % 3]], "seed": k,
                "width": 32, "height": 32, "image": image(model, k), "image_sha256": files.sha256_hex(image(model, k)),
            }
            for k in range(count)
        ]
        for model, count in (("a", 17), ("b", 16))
    }  # fmt: skip
    for name, model in zip(MODELS, "ab", strict=True):
        publish(lake, name, "generations", rows[model], [])
    publish(lake, "elsewhere", "generations", [{**row, "seed": 99} for row in rows["b"]], [])
    publish(lake, "images", "images", [{"sample_id": 1, "language": "en"}], [])
    return lake.uri
