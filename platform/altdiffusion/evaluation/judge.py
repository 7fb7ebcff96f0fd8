"""The judge: a small classifier that names the concept in a 32 x 32 image, for retrieval accuracy per language.

It is trained on real images only. It never sees a generated image, and no generator uses it. The augmentation imitates
the defects of generated images (the autoencoder's loss, softness, noise, a shifted shape), so that the accuracy
measures the concept and not the codec. The same images, labels and seed give the same judge on one machine.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from altdiffusion.diffusion.weight_files import check_keys
from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.storage.files import read_bytes, write_atomic

SIDE = 32  # pixels
_FORMAT = "altdiffusion-judge-1"
_BATCH = 256  # images per pass in `predict`


class Judge(nn.Module):  # type: ignore[misc]
    """Convolutions to [128, 4, 4], a mean, one linear layer.

    Args:
        classes: the concept ids, ascending; output k is for `classes[k]`.
    """

    def __init__(self, classes: npt.NDArray[np.int64]) -> None:
        super().__init__()
        self.classes = classes
        widths = (3, 32, 64, 128, 128)
        layers: list[nn.Module] = []
        for number, (wide_in, wide_out) in enumerate(itertools.pairwise(widths)):
            stride = 1 if number == 0 else 2
            layers += [
                nn.Conv2d(wide_in, wide_out, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(wide_out),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(2 * widths[-1], len(classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits [B, K] for images, float32 [B, 3, 32, 32] in -1..1."""
        features = self.features(x)
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)
        logits: torch.Tensor = self.head(pooled)
        return logits

    def probabilities(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return probabilities for images, uint8 [N, 32, 32, 3].

        Returns:
            float32 [N, K]; rows sum to 1, columns are in the order of `classes`.
        """
        self.eval()
        x = _signed(_checked(images))
        with torch.no_grad():
            parts = [torch.softmax(self(part), dim=1) for part in x.split(_BATCH)]
        joined = torch.cat(parts) if parts else torch.zeros(0, len(self.classes))
        return np.asarray(joined.numpy(), dtype=np.float32)

    def predict(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Return the most likely concept ids, int64 [N], for images, uint8 [N, 32, 32, 3]."""
        return np.asarray(self.classes[self.probabilities(images).argmax(1)], dtype=np.int64)

    def save(self, uri: str) -> None:
        """Write the judge as one safetensors file."""
        from safetensors.torch import save

        metadata = {"format": _FORMAT, "classes": json.dumps([int(c) for c in self.classes])}
        write_atomic(uri, save({name: t.contiguous() for name, t in self.state_dict().items()}, metadata))


def load_judge(uri: str) -> Judge:
    """Load a judge that `Judge.save` wrote.

    Raises:
        AltDiffusionError: the file is not a judge.
    """
    from safetensors.torch import load

    try:
        data = read_bytes(uri)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"format {metadata.get('format')!r}")
        judge = Judge(np.array(json.loads(metadata["classes"]), dtype=np.int64))
        tensors, wanted = load(data), judge.state_dict()
        what, remedy = f"judge {uri}", "delete it: the evaluation trains it again"
        check_keys(wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys(), what, remedy)
        judge.load_state_dict(tensors)
        judge.eval()
    except AltDiffusionError:
        raise
    except Exception as error:
        raise AltDiffusionError(
            f"judge {uri}",
            f"cannot be opened ({type(error).__name__}: {first_line(error)})",
            "delete it: the evaluation trains it again",
        ) from error
    return judge


def train_judge(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    seed: int,
    *,
    steps: int = 700,
    batch: int = 64,
    rate: float = 3e-3,
    progress: Callable[[int, int], None] | None = None,
) -> Judge:
    """Train a judge without changing the caller's random state.

    The optimizer is AdamW with linear warm-up and cosine decay; label smoothing is 0.1.

    Args:
        images: real images, uint8 [N, 32, 32, 3].
        labels: their concept ids, int64 [N].
        seed: the seed of weights, order and augmentation.
        steps: number of updates.
        batch: images per update.
        rate: peak learning rate.
        progress: called with (steps done, steps) after each step.

    Raises:
        AltDiffusionError: there are no images, they have another shape, or the labels have another length.
    """
    pixels = _checked(images)
    if len(pixels) == 0 or labels.shape != (len(pixels),):
        raise AltDiffusionError(
            f"the judge's {len(pixels)} images", f"have labels of shape {labels.shape}", "give one label per image"
        )
    classes, targets = np.unique(labels.astype(np.int64), return_inverse=True)
    answer = torch.from_numpy(targets.astype(np.int64))
    x = _signed(pixels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge(classes)
        optimizer = torch.optim.AdamW(judge.parameters(), lr=rate, weight_decay=0.05)
        warmup = max(1, steps // 20)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda n: min((n + 1) / warmup, 0.5 * (1 + np.cos(np.pi * min(n, steps) / steps)))
        )
        judge.train()
        for step in range(steps):
            pick = torch.randint(0, len(x), (batch,))
            logits = judge(_augment(x[pick]))
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
    """Return images [B, 3, 32, 32] with random defects of generation and coding, from torch's generator."""
    n = len(x)
    angle, scale = 0.15 * torch.randn(n), torch.exp(0.1 * torch.randn(n))
    shear = 0.05 * torch.randn(n)
    turn = torch.stack(
        [
            torch.stack([scale * angle.cos(), -scale * angle.sin() + shear, 0.08 * torch.randn(n)], 1),
            torch.stack([scale * angle.sin(), scale * angle.cos(), 0.08 * torch.randn(n)], 1),
        ],
        1,
    )
    grid = functional.affine_grid(turn, list(x.shape), align_corners=False)
    x = functional.grid_sample(x - 1, grid, align_corners=False) + 1  # outside is white
    coarse = functional.interpolate(functional.avg_pool2d(x, 2), scale_factor=2.0, mode="bilinear")
    soft = functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    mix = torch.rand(n, 2, 1, 1, 1) * (torch.rand(n, 2, 1, 1, 1) < 0.4)
    x = x + mix[:, 0] * (soft - x)
    x = x + mix[:, 1] * (coarse - x)
    blocks = torch.randn(n, 3, SIDE // 4, SIDE // 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    x = x + 0.25 * torch.rand(n, 1, 1, 1) * torch.randn(x.shape) + 0.2 * torch.rand(n, 1, 1, 1) * blocks
    colour = 1 + 0.1 * torch.randn(n, 3, 1, 1)
    return (x * colour + 0.08 * torch.randn(n, 3, 1, 1)).clamp(-1, 1)


def _checked(images: Any) -> npt.NDArray[np.uint8]:
    array = np.asarray(images)
    if array.ndim != 4 or array.shape[1:] != (SIDE, SIDE, 3) or array.dtype != np.uint8:
        raise AltDiffusionError(
            f"images of shape {array.shape}, {array.dtype}",
            f"are not uint8 [N, {SIDE}, {SIDE}, 3]",
            "resize them first",
        )
    return array


def _signed(images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Convert uint8 [N, H, W, 3] to float32 [N, 3, H, W] in -1..1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
