"""A panorama drawn by the demo's small base, through the job: overlapping windows, prompts by region, circular.

    python -m demo.long_image --out docs/images/long_image.png

The base was trained on images of 32 pixels with one thing each. The panorama is 512 x 32 pixels; it is written four
times as large, by nearest neighbour, and once more rotated by half its width below, where its two ends meet.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from altdiffusion.storage.dataset import Lake
from demo.base import unpack

REGIONS = ("water wave", "desert island", "volcano", "tree", "lemon", "rainbow", "tomato", "house")
WIDTH, SIDE, TIMES, GAP = 512, 32, 4, 4


def config(folder: Path) -> Path:
    """Write the job's config and prompts into a folder, which also gets the lake."""
    row = {"id": "panorama", "prompt": "sea", "seed": 3, "width": WIDTH, "height": SIDE, "regions": REGIONS}
    (folder / "prompts.jsonl").write_text(json.dumps(row) + "\n")
    base, _ = unpack(folder / "models")
    tree = {
        "lake": str(folder / "lake"),
        "generate": {
            "model": {"folder": str(base)},
            "prompts": {"file": str(folder / "prompts.jsonl"), "default_size": SIDE},
            "steps": 30,
            "guidance_scale": 3.0,
            "batch_rows": 32,
            "windows": {"side": SIDE, "overlap": SIDE // 2, "circular": True},
        },
    }
    path = folder / "generate.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def shown(data: bytes) -> Image.Image:
    """Return a panorama, encoded, as two rows of large pixels: as drawn, and rotated by half its width."""
    image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    rotated = np.roll(image, image.shape[1] // 2, axis=1)
    gap = np.full((GAP, image.shape[1], 3), 255, np.uint8)
    both = Image.fromarray(np.concatenate((image, gap, rotated)), "RGB")
    return both.resize((both.width * TIMES, both.height * TIMES), Image.Resampling.NEAREST)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    from jobs import generate
    from jobs.harness import main as run

    parser = argparse.ArgumentParser(prog="python -m demo.long_image", description="Draws a panorama for the docs.")
    parser.add_argument("--out", type=Path, required=True, help="the PNG to write")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        status = run(generate.JOB, ["--config", str(config(Path(folder)))])
        if status == 0:
            (row,) = Lake(f"{folder}/lake").version("generations").read(["image"]).to_pylist()
            shown(row["image"]).save(given.out, optimize=True)
            print(given.out)
    return status


if __name__ == "__main__":
    from jobs.harness import leave

    leave(main(sys.argv[1:]))
