"""All of it in its order."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from altdiffusion.training.config.compute import ComputeConfig
from altdiffusion.training.config.run import Precision
from altdiffusion.training.model.attention import set_attention
from altdiffusion.training.model.lean import keep_no_frozen_inputs
from altdiffusion.training.model.precision import to_bf16
from altdiffusion.training.model.scales import skip_unit_scales
from altdiffusion.training.model.sharding import shard


def prepare_network(unet: Any, *, precision: Precision, compute: ComputeConfig, device: torch.device) -> torch.dtype:
    """Makes a UNet ready on a device, in place. What is trained of it is settled before (`requires_grad`); sharding
    puts other parameter objects in the places of these, under the same names.

    Returns:
        The dtype that it wants its inputs in.
    """
    dtype = torch.float32
    if precision == "bf16":
        to_bf16(unet)
        dtype = torch.bfloat16
    if compute.lean:
        keep_no_frozen_inputs(unet)
        if not compute.compile:  # the compiler sees to it itself
            skip_unit_scales(unet)
    unet.to(device)
    if compute.channels_last_on(device):
        unet.to(memory_format=torch.channels_last)
    if compute.attention != "sdpa":  # which is diffusers' own choice
        set_attention(unet, compute.attention, device)
    if compute.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if compute.sharding == "fsdp" and dist.is_initialized() and dist.get_world_size() > 1:
        shard(unet, dtype)
    if compute.compile:
        _compile(unet, compute, device)
    return dtype


def _compile(unet: Any, compute: ComputeConfig, device: torch.device) -> None:
    """Compiles `forward` in place, so that names of parameters stay.

    With CUDA graphs a micro-batch is one launch instead of a few thousand: it pays where they are so small that the
    host is slower than the GPU.
    """
    if compute.channels_last_on(device):
        # Inductor gives the layout up for graphs with a backward pass (pytorch/pytorch#189239, #191306).
        import torch._inductor.config as inductor

        inductor.force_layout_optimization = True
    if compute.cuda_graphs and device.type == "cuda":
        unet.compile(dynamic=False, mode="reduce-overhead")
    else:
        unet.compile(dynamic=False)
