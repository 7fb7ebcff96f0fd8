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
    """The token ids of the layout's rows, and by which tokenizer the networks know them."""
    trained: list[tuple[str, torch.nn.Parameter]]
    """What is trained of it, by its name in `weights`, in the network's own order."""

    def weights(self) -> dict[str, Tensor]:
        """What a checkpoint holds of the network: all that its start does not give."""
        ...

    def loss(self, samples: Samples) -> Tensor:
        """Mean loss of some samples (float32 scalar), with everything drawn for them keyed by their positions."""
        ...

    def flops(self, samples: Samples) -> float:
        """Floating-point operations of one sample of these, forward and backward of what is trained; 0 if unknown."""
        ...
