"""What decoding ahead of the VAE gains: images per second of one encode worker, with threads ahead and without.

    python -m benchmarks.encode [--images 96] [--rounds 5] [--resolution 128] [--also 64]

Images: 680 x 512 JPEG of quality 95. A small AutoencoderKL (4 to 32 channels, one torch thread) represents a VAE
that is about as fast as the decoder; with a real one on a GPU one decoding thread is the slower of the two. The limit
is the slower of decoding alone (one thread) and the VAE alone. Wall-clock medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from altdiffusion.curation.config import EncodeConfig
from altdiffusion.curation.encoding.encode_work import EncodeWork, Target, plan_encode
from altdiffusion.curation.encoding.latent_encoder import LatentEncoder
from altdiffusion.diffusion.image_crop import crop, open_rgb
from altdiffusion.storage.dataset import Version
from tests.curation_lake import save_tokenizer, write_images

SIZE = (680, 512)
MICRO_BATCH = 8


def photograph(seed: int) -> bytes:
    """Return colours that change slowly, with grain: they take about as long to decode as a photograph."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (17, 23, 3), np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
    grain = draw.normal(0, 6, (SIZE[1], SIZE[0], 3))
    out = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=95)
    return out.getvalue()


def save_vae(folder: Path) -> str:
    from diffusers import AutoencoderKL

    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 8, 16, 32),
        norm_num_groups=4,
        latent_channels=4,
        layers_per_block=1,
    ).save_pretrained(folder)
    return str(folder)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(images: Version, lake: str, bodies: list[bytes], arguments: argparse.Namespace) -> None:
    root = Path(lake) / "models"
    models = {"vae": save_vae(root / "vae"), "tokenizer": save_tokenizer(root / "tok"), "max_length": 8}
    sides = [arguments.resolution, *([arguments.also] if arguments.also else [])]
    targets = [Target(dataset=f"latents-{side}", resolution=side) for side in sides]
    works = {}
    for threads in (0, 1, 2):
        config = EncodeConfig(**models, resolution=sides[0], micro_batch=MICRO_BATCH, threads=threads)
        works[threads] = EncodeWork(lake=lake, targets=targets, config=config)
        works[threads].setup()
    encoder, place = LatentEncoder(config), np.array([0.5, 0.5], np.float32)
    (unit,) = plan_encode(images, len(bodies))

    def decode() -> None:
        for body in bodies:
            rgb = open_rgb(body)
            for side in sides:
                crop(rgb, (side, side), place)

    def encode() -> None:
        for side in sides:
            batch = np.zeros((MICRO_BATCH, side, side, 3), np.uint8)
            for _ in range(len(bodies) // MICRO_BATCH):
                encoder.encode(batch, np.zeros(MICRO_BATCH, np.int64))

    def one(threads: int) -> float:
        return seconds(lambda: works[threads].run_outputs(unit, [target.dataset for target in targets]))

    one(0)
    rounds = [
        {"decoding alone": seconds(decode), "VAE alone": seconds(encode), **{str(n): one(n) for n in works}}
        for _ in range(arguments.rounds)
    ]
    middle = {name: statistics.median(times[name] for times in rounds) for name in rounds[0]}
    limit = max(middle["decoding alone"], middle["VAE alone"])
    print(f"{len(bodies)} images of {SIZE[0]} x {SIZE[1]}, {' and '.join(map(str, sides))} px")
    print("| | images/s | of the limit | against no threads |\n|---|---|---|---|")
    for name, taken in middle.items():
        label = f"encode, threads: {name}" if name.isdigit() else name
        rate = len(bodies) / taken
        print(f"| {label} | {rate:.1f} | {limit / taken:.2f} | {middle['0'] / taken:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--also", type=int, default=0, help="a second resolution in the same pass")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bodies = [photograph(seed) for seed in range(arguments.images)]
    with tempfile.TemporaryDirectory() as lake:
        rows = range(len(bodies))
        images = write_images(lake, rows, dict.fromkeys(rows, SIZE), bodies=dict(enumerate(bodies)))
        measure(images, lake, bodies, arguments)


if __name__ == "__main__":
    main()
