"""Heads: one number from CLIP's normalised image embedding e [D].

    x = e, or (e - mean) / max(sqrt(variance), 1e-7) where the head standardises      (Keras' Normalization)
    x = activation(W x + b) for each hidden layer, then s = w . x + b, and sigmoid(s) where the head is configured so

The layers are those of the file, in the order of the numbers in their names, so that the published files load as they
are: LAION-AI/aesthetic-predictor (V1: `weight`, `bias`), christophschuhmann/improved-aesthetic-predictor (V2:
`layers.0.weight`, `layers.2.weight`, ..., dropout between them, which does nothing when scoring), and the torch port
of LAION-AI/CLIP-based-NSFW-Detector (its issue 7: `norm.mean`, `norm.variance`, `linear_1.weight`, ...).

Shapes: B images, D width of the embedding.
"""

from __future__ import annotations

import re
from typing import Any

from altdiffusion.curation.config import HeadConfig
from altdiffusion.diffusion.pinned_files import load_tensors
from altdiffusion.errors import AltDiffusionError

_EPSILON = 1e-7  # Keras' backend epsilon
_NORM = ("norm.mean", "norm.variance")


class Head:
    """A loaded head; always float32."""

    def __init__(self, config: HeadConfig, width: int, device: Any = "cpu") -> None:
        """Load the head for embeddings [B, width].

        Raises:
            AltDiffusionError: other bytes than pinned, or other layers than configured.
        """
        import torch

        self._torch, self._config = torch, config
        tensors = load_tensors(config.uri, config.sha256)
        names = _layer_names(tensors)
        expected = _shapes(names, (width, *config.hidden, 1), config)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if expected is None or shapes != expected:
            raise AltDiffusionError(
                f"head {config.uri}",
                f"holds {_described(shapes)}, not layers {[width, *config.hidden, 1]}"
                + (" with norm.mean and norm.variance" if config.standardise else ""),
                "set hidden and standardise as the file is, or use the head of this CLIP",
            )
        on = {name: tensor.to(device, torch.float32) for name, tensor in tensors.items()}
        self._layers = [(on[f"{name}weight"], on[f"{name}bias"]) for name in names]
        if config.standardise:
            self._mean, self._deviation = on["norm.mean"], on["norm.variance"].sqrt().clamp_min(_EPSILON)

    def __call__(self, embedding: Any) -> Any:
        """Return the scores, float32 [B], of embeddings, float32 [B, D], rows of length 1."""
        torch, config = self._torch, self._config
        x = (embedding - self._mean) / self._deviation if config.standardise else embedding
        for number, (weight, bias) in enumerate(self._layers, 1):
            x = torch.nn.functional.linear(x, weight, bias)
            if config.activation == "relu" and number < len(self._layers):
                x = torch.relu(x)
        return (torch.sigmoid(x) if config.sigmoid else x)[:, 0]


def _layer_names(tensors: dict[str, Any]) -> list[str]:
    """Return what is before `weight` in the name of each layer, in the order of the numbers in it."""
    names = [name.removesuffix("weight") for name in tensors if re.fullmatch(r"(.*[._])?weight", name)]
    return sorted(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])


def _shapes(names: list[str], widths: tuple[int, ...], config: HeadConfig) -> dict[str, tuple[int, ...]] | None:
    """Return the shapes that the file must hold; None if it has another number of layers."""
    if len(names) != len(widths) - 1:
        return None
    shapes: dict[str, tuple[int, ...]] = {}
    for name, wide, out in zip(names, widths[:-1], widths[1:], strict=True):
        shapes[f"{name}weight"], shapes[f"{name}bias"] = (out, wide), (out,)
    return shapes | (dict.fromkeys(_NORM, (widths[0],)) if config.standardise else {})


def _described(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items())) or "nothing"
