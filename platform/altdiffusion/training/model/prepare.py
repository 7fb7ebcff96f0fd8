"""All preparations of a network, in their order."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from altdiffusion.training.config.compute import ComputeConfig
from altdiffusion.training.config.run import Precision
from altdiffusion.training.model.activation_saving import keep_no_frozen_inputs, skip_unit_scales
from altdiffusion.training.model.attention import set_attention
from altdiffusion.training.model.precision import to_bf16
from altdiffusion.training.model.sharding import shard


def prepare_network(unet: Any, *, precision: Precision, compute: ComputeConfig, device: torch.device) -> torch.dtype:
    """Make a UNet ready for training on a device, in place. `requires_grad` of its parameters must be set before.
    Sharding replaces the parameter objects by others of the same names.

    Returns:
        The dtype of its inputs.
    """
    dtype = torch.float32
    if precision == "bf16":
        to_bf16(unet)
        dtype = torch.bfloat16
    if compute.lean:
        keep_no_frozen_inputs(unet)
        if not compute.compile:  # the compiler leaves these divisions out itself
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
    """Compile `forward` in place, so that the names of parameters stay.

    With CUDA graphs a micro-batch is one launch instead of a few thousand: it pays where micro-batches are so small
    that the host is slower than the GPU.
    """
    if compute.channels_last_on(device):
        # Inductor gives the layout up for graphs with a backward pass (pytorch/pytorch#189239, #191306).
        import torch._inductor.config as inductor

        inductor.force_layout_optimization = True
    if compute.cuda_graphs and device.type == "cuda":
        unet.compile(dynamic=False, mode="reduce-overhead")
    else:
        unet.compile(dynamic=False)
