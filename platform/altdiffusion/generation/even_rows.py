"""Small layers that round differently for a few rows get filled up, so that small batches give the bits of full ones.

Measured on an x86-64 CPU with PyTorch 2.13 and oneDNN: linear layers of the timestep differ for up to 2 rows, 1 x 1
convolutions for up to 8, other convolutions for 1. Attention and linear layers over positions do not differ. The layers
named are a small part of the work (the 3 x 3 convolutions are not, and are filled up to 2 rows only). Whether a batch
then has the bits of a full one is still proven (`batch_shapes`), never assumed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

SMALL_LAYERS, CONVOLUTIONS = 16, 2
"""Least number of rows of the layers that work per row or per pixel, and of other convolutions."""


def even_rows(unet: Any, vae: Any, batch_rows: int) -> None:
    """Let both networks fill up the rows of such layers, in place; batches of `batch_rows` compute what they did."""
    for network in (unet, vae):
        for name, layer in network.named_modules():
            rows = _least_rows(name, layer)
            if rows:
                plain = type(layer).forward.__get__(layer)  # what an earlier call set is replaced
                layer.forward = _filled(plain, min(rows, batch_rows))


def _least_rows(name: str, layer: nn.Module) -> int:
    """Return the number of rows that a layer needs to round as in a full batch; 0 where any number does."""
    if isinstance(layer, nn.Conv2d):
        return SMALL_LAYERS if set(layer.kernel_size) == {1} else CONVOLUTIONS
    return SMALL_LAYERS if isinstance(layer, nn.Linear) and "time_emb" in name else 0


def _filled(forward: Callable[..., Tensor], rows: int) -> Callable[..., Tensor]:
    """Return a layer's `forward` that computes at least `rows` rows, [n, ...] -> [n, ...]."""

    def call(given: Tensor, *others: Any) -> Tensor:
        missing = rows - len(given)
        if missing <= 0:
            return forward(given, *others)
        filling = [given[-1:]] * missing  # not `expand`: joined with that, channels-last rows lose their layout
        return forward(torch.cat((given, *filling)), *others)[: len(given)]

    return call
