"""The judge: a small classifier that names the concept in an image, for retrieval accuracy per language.

It is trained on real images only (judge_training.py). It never sees a generated image, and no generator uses it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from altdiffusion.diffusion.weight_files import check_keys
from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.storage.files import read_bytes, write_atomic

SIDE = 32  # pixels, of the smallest network; each doubling adds a stage
_FORMAT = "altdiffusion-judge-2"
_BATCH = 256  # images of SIDE pixels per pass in `read`
_REMEDY = "delete it: the evaluation trains it again"


class Judge(nn.Module):  # type: ignore[misc]
    """Convolutions to a map of 4 x 4 to 7 x 7, its mean and maximum, one linear layer.

    Three convolutions have stride 2 for images of up to 63 pixels; each doubling of the side adds one of 256 channels.

    Args:
        classes: the concept ids, ascending; output k is for `classes[k]`.
        side: height and width of the images that it reads, in pixels.
    """

    def __init__(self, classes: npt.NDArray[np.int64], side: int = SIDE) -> None:
        super().__init__()
        self.classes = classes
        self.side = side
        doublings = max(0, (side // SIDE).bit_length() - 1)
        widths = (3, 32, 64, 128, 128, *[256] * doublings)
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
        """Return logits [B, K] for images, float32 [B, 3, S, S] in -1..1."""
        logits: torch.Tensor = self.head(self._pooled(x))
        return logits

    def _pooled(self, x: torch.Tensor) -> torch.Tensor:
        features = self.features(x)
        return torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)

    def read(self, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return what the judge finds in images, uint8 [N, S, S, 3].

        Returns:
            Probabilities, float32 [N, K], whose rows sum to 1 and whose columns are in the order of `classes`; and
            features of the layer before the last, float32 [N, D], of length 1 (all 0 where nothing was found).
        """
        self.eval()
        pixels = torch.from_numpy(checked(images, self.side))
        device = self.head.weight.device
        batch = max(1, _BATCH * SIDE**2 // self.side**2)
        chances, features = [torch.zeros(0, len(self.classes))], [torch.zeros(0, self.head.in_features)]
        with torch.no_grad():
            for part in pixels.split(batch) if len(pixels) else ():
                pooled = self._pooled(signed(part.to(device)))
                chances.append(torch.softmax(self.head(pooled), dim=1).cpu())
                features.append(functional.normalize(pooled, dim=1).cpu())
        return np.asarray(torch.cat(chances).numpy(), np.float32), np.asarray(torch.cat(features).numpy(), np.float32)

    def probabilities(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the probabilities that `read` returns."""
        return self.read(images)[0]

    def predict(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Return the most likely concept ids, int64 [N], for images, uint8 [N, S, S, 3]."""
        return np.asarray(self.classes[self.probabilities(images).argmax(1)], dtype=np.int64)

    def save(self, uri: str, inputs: str = "") -> None:
        """Write the judge as one safetensors file.

        Args:
            inputs: digest of what it was trained with, which `load_judge` compares.
        """
        from safetensors.torch import save

        weights = {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}
        metadata = {
            "format": _FORMAT,
            "classes": json.dumps([int(c) for c in self.classes]),
            "side": str(self.side),
            "inputs": inputs,
            "content": _digest(weights),
        }
        write_atomic(uri, save(weights, metadata))


def load_judge(uri: str, inputs: str | None = None) -> Judge:
    """Load a judge that `Judge.save` wrote.

    Args:
        inputs: digest of what it must have been trained with; None takes any.

    Raises:
        AltDiffusionError: the file is not a judge, is damaged, or is one of other inputs.
        FileNotFoundError: there is no such file.
    """
    from safetensors.torch import load

    data = read_bytes(uri)
    try:
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"format {metadata.get('format')!r}")
        judge = Judge(np.array(json.loads(metadata["classes"]), dtype=np.int64), int(metadata["side"]))
        tensors, wanted = load(data), judge.state_dict()
        check_keys(wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys(), f"judge {uri}", _REMEDY)
        if metadata["content"] != _digest(tensors):
            raise ValueError("its weights are not those that were written")
        if inputs is not None and metadata["inputs"] != inputs:
            raise ValueError("it was trained with other inputs")
        judge.load_state_dict(tensors)
        judge.eval()
    except AltDiffusionError:
        raise
    except Exception as error:
        raise AltDiffusionError(
            f"judge {uri}", f"cannot be opened ({type(error).__name__}: {first_line(error)})", _REMEDY
        ) from error
    return judge


def _digest(weights: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 (hex) of names, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        values = weights[name].numpy()
        digest.update(f"{name} {values.dtype} {values.shape}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def checked(images: Any, side: int) -> npt.NDArray[np.uint8]:
    """Return images as an array.

    Raises:
        AltDiffusionError: they are not uint8 [N, side, side, 3].
    """
    array = np.asarray(images)
    if array.ndim != 4 or array.shape[1:] != (side, side, 3) or array.dtype != np.uint8:
        raise AltDiffusionError(
            f"images of shape {array.shape}, {array.dtype}",
            f"are not uint8 [N, {side}, {side}, 3]",
            "resize them first",
        )
    return array


def signed(images: torch.Tensor) -> torch.Tensor:
    """Convert uint8 [N, H, W, 3] to float32 [N, 3, H, W] in -1..1."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1
