"""How a judge is trained, and kept in the lake so that a second evaluation does not train it again.

The augmentation imitates the defects of generated images (the autoencoder's loss, softness, noise, a shifted shape), so
that the accuracy measures the concept and not the codec. The same images, labels and seed give the same judge on one
machine, on a CPU; a GPU sums in an order that may change from run to run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch.nn import functional

from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.judge import SIDE, Judge, checked, load_judge, signed
from altdiffusion.storage import files
from altdiffusion.storage.judges import judge_uri, record_rows

_RECIPE = 1
"""To be raised with any change of network, augmentation or optimizer: it is part of the digest of a kept judge."""


def kept_judge(
    lake: str,
    images: npt.NDArray[np.uint8],
    shown: npt.NDArray[np.str_],
    seed: int,
    *,
    rows: pa.Table,
    steps: int,
    device: str = "cpu",
    report: Callable[[str], None] = print,
) -> Judge:
    """Return the judge of these inputs, from `<lake>/judges/<digest of the inputs>.safetensors` or newly trained.

    Args:
        images: real images, uint8 [N, S, S, 3].
        shown: the concept that each shows, [N]; class k of the judge is the k-th of them in ascending order.
        rows: rows of datasets that hold these images (`storage.judges.ROWS`): a takedown of one discards the judge.
        report: receives one line if a file is damaged, so that the judge is trained again.

    Raises:
        AltDiffusionError: as `train_judge`.
    """
    digest = _inputs_digest(images, shown, {"seed": seed, "steps": steps, "device": device, "recipe": _RECIPE})
    uri = judge_uri(lake, digest)
    record_rows(lake, digest, rows)
    try:
        judge = load_judge(uri, digest)
        judge.to(device)
        return judge
    except FileNotFoundError:
        pass
    except AltDiffusionError as error:
        report(f"{error.what} {error.problem}; it is trained again")
    labels = np.unique(shown, return_inverse=True)[1].astype(np.int64)
    judge = train_judge(images, labels, seed, steps=steps, device=device)
    judge.save(uri, digest)
    return judge


def _inputs_digest(images: npt.NDArray[np.uint8], shown: npt.NDArray[np.str_], settings: dict[str, int | str]) -> str:
    pixels = hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
    document = {**settings, "pixels": pixels, "shape": list(images.shape), "shown": shown.tolist()}
    return files.sha256_hex(files.canonical_json(document))


def train_judge(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    seed: int,
    *,
    steps: int = 700,
    batch: int = 64,
    rate: float = 3e-3,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Judge:
    """Train a judge without changing the caller's random state.

    The optimizer is AdamW with linear warm-up and cosine decay; label smoothing is 0.1.

    Args:
        images: real images, uint8 [N, S, S, 3].
        labels: their concept ids, int64 [N].
        seed: the seed of weights, order and augmentation.
        steps: number of updates.
        batch: images per update.
        rate: peak learning rate.
        device: `cpu` or `cuda`.
        progress: called with (steps done, steps) after each step.

    Raises:
        AltDiffusionError: there are no images, they are not squares, or the labels have another length.
    """
    side = images.shape[1] if images.ndim == 4 and len(images) else SIDE
    pixels = torch.from_numpy(checked(images, side)).to(device)
    if len(pixels) == 0 or labels.shape != (len(pixels),):
        raise AltDiffusionError(
            f"the judge's {len(pixels)} images", f"have labels of shape {labels.shape}", "give one label per image"
        )
    classes, targets = np.unique(labels.astype(np.int64), return_inverse=True)
    answer = torch.from_numpy(targets.astype(np.int64)).to(device)
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
        torch.manual_seed(seed)
        judge = Judge(classes, side)
        judge.to(device)
        optimizer = torch.optim.AdamW(judge.parameters(), lr=rate, weight_decay=0.05)
        warmup = max(1, steps // 20)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda n: min((n + 1) / warmup, 0.5 * (1 + np.cos(np.pi * min(n, steps) / steps)))
        )
        judge.train()
        for step in range(steps):
            pick = torch.randint(0, len(pixels), (batch,)).to(device)
            logits = judge(_augment(signed(pixels[pick])))
            loss = functional.cross_entropy(logits, answer[pick], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(step + 1, steps)
    judge.eval()
    return judge


def _augment(x: torch.Tensor) -> torch.Tensor:
    """Return images [B, 3, S, S] with random defects of generation and coding, from torch's generator.

    Softness and blocks are as large, in the image, as at 32 pixels: of twice as many pixels at twice the side.
    """
    n, side, device = len(x), x.shape[-1], x.device
    unit = max(1, side // SIDE)  # pixels

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, device=device)

    angle, scale = 0.15 * normal(n), torch.exp(0.1 * normal(n))
    shear = 0.05 * normal(n)
    turn = torch.stack(
        [
            torch.stack([scale * angle.cos(), -scale * angle.sin() + shear, 0.08 * normal(n)], 1),
            torch.stack([scale * angle.sin(), scale * angle.cos(), 0.08 * normal(n)], 1),
        ],
        1,
    )
    grid = functional.affine_grid(turn, list(x.shape), align_corners=False)
    x = functional.grid_sample(x - 1, grid, align_corners=False) + 1  # outside is white
    coarse = functional.interpolate(functional.avg_pool2d(x, 2 * unit), size=(side, side), mode="bilinear")
    soft = functional.avg_pool2d(functional.pad(x, (unit,) * 4, mode="replicate"), 2 * unit + 1, stride=1)
    mix = uniform(n, 2, 1, 1, 1) * (uniform(n, 2, 1, 1, 1) < 0.4)
    x = x + mix[:, 0] * (soft - x)
    x = x + mix[:, 1] * (coarse - x)
    count = -(-side // (4 * unit))
    blocks = normal(n, 3, count, count).repeat_interleave(4 * unit, 2).repeat_interleave(4 * unit, 3)
    blocks = blocks[..., :side, :side]
    x = x + 0.25 * uniform(n, 1, 1, 1) * normal(*x.shape) + 0.2 * uniform(n, 1, 1, 1) * blocks
    colour = 1 + 0.1 * normal(n, 3, 1, 1)
    return (x * colour + 0.08 * normal(n, 3, 1, 1)).clamp(-1, 1)
