"""Memory of the VAE in the loop, for runs that train on images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from altdiffusion.diffusion.models import build_vae
from altdiffusion.training.config import OnlineConfig


def vae_bytes(config: dict[str, Any], online: OnlineConfig, batch: int) -> tuple[int, int]:
    """Return (weights of the encoder, what it takes in addition while it encodes a micro-batch), in bytes.

    The latter is counted on the `meta` device: input and output of the layer for which they are largest, as nothing is
    kept for a backward pass. It is free again before the UNet begins.
    """
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[online.dtype]
    vae = build_vae(config, "meta").to(dtype)
    parts = [part for part in (vae.encoder, vae.quant_conv) if part is not None]
    weights = sum(weight.numel() * weight.element_size() for part in parts for weight in part.parameters())
    largest = 0

    def note(_: Any, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal largest
        held = {id(tensor): tensor.nbytes for tensor in (*inputs, output) if isinstance(tensor, Tensor)}
        largest = max(largest, sum(held.values()))

    for module in vae.modules():
        if not list(module.children()):
            module.register_forward_hook(note)
    with torch.no_grad():
        vae.encode(torch.empty(batch, 3, online.resolution, online.resolution, device="meta", dtype=dtype))
    return weights, largest
