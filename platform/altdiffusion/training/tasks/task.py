"""The protocol between the trainer and what is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from altdiffusion.training.data.layout import Layout
from altdiffusion.training.data.loader import Samples
from altdiffusion.training.data.token_check import TokenColumn


class Task(Protocol):
    """Networks on the device, and the loss of some samples."""

    layout: Layout
    """How rows become the tensors that the loss reads."""
    weights_file: str
    """Name of the checkpoint file that holds the network: `unet.safetensors`, `text_encoder.safetensors`, or
    `lora.safetensors` where adapters alone are trained."""
    module: torch.nn.Module
    """The network that is trained, wholly or in part."""
    tokens: Sequence[TokenColumn]
    """The token ids of the layout's rows, and the tokenizers whose ids the networks expect."""
    trained: list[tuple[str, torch.nn.Parameter]]
    """The parameters that are trained, by their names in `weights`, in the network's own order."""

    def weights(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds of the network: all that its start does not give."""
        ...

    def loss(self, samples: Samples) -> Tensor:
        """Return the mean loss of some samples (float32 scalar); all that is drawn for them is keyed by their
        positions."""
        ...

    def flops(self, samples: Samples) -> float:
        """Return the floating-point operations per sample, forward, and backward of what is trained; 0 if unknown."""
        ...
