"""The UNet as the sampler calls it: as it is, compiled, or with DeepCache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from altdiffusion.diffusion.models import ModelBundle
from altdiffusion.generation.deep_cache import DeepCache, Unet
from altdiffusion.generation.speed import SpeedConfig

Begin = Callable[[], Unet]
"""Returns what is called for all steps of one batch, in their order."""
MOST_SHAPES = 1 << 20
"""Shapes that may be compiled. Beyond PyTorch's own limit of 8, further ones would run uncompiled, with other bits."""


def prepare(bundle: ModelBundle, speed: SpeedConfig) -> Begin:
    """Set UNet and VAE up in place, and return how a batch begins.

    Args:
        bundle: the model, on its device and in its dtype.
    """
    unet, vae = bundle.unet, bundle.vae
    if next(unet.parameters()).is_cuda:
        torch.backends.cudnn.allow_tf32 = speed.tf32 != "none"
        torch.backends.cuda.matmul.allow_tf32 = speed.tf32 == "all"
    if speed.channels_last:
        unet.to(memory_format=torch.channels_last)
        vae.to(memory_format=torch.channels_last)
    if speed.compile:
        _allow_every_shape()
        vae.decoder.compile(dynamic=False)
    if speed.deep_cache > 1:
        cache = DeepCache(unet, speed.deep_cache)
        if speed.compile:
            cache.whole, cache.outer = _compiled(cache.whole, speed), _compiled(cache.outer, speed)
        return cache.begin
    called: Unet = _compiled(unet, speed) if speed.compile else unet
    return lambda: called


def _compiled(function: Any, speed: SpeedConfig) -> Any:
    """Return a function or network compiled for each shape on its own, as CUDA graphs where asked."""
    if not speed.cuda_graphs:
        return torch.compile(function, dynamic=False)
    recorded = torch.compile(function, dynamic=False, mode="reduce-overhead")

    def call(*given: Any, **named: Any) -> Any:
        # A graph writes into the same memory at each replay, and samplers keep earlier outputs.
        torch.compiler.cudagraph_mark_step_begin()
        made = recorded(*given, **named)
        return tuple(one.clone() for one in made) if isinstance(made, tuple) else made.clone()

    return call


def _allow_every_shape() -> None:
    import torch._dynamo

    torch._dynamo.config.recompile_limit = MOST_SHAPES
    torch._dynamo.config.accumulated_recompile_limit = MOST_SHAPES
