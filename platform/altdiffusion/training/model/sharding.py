"""Weights and gradients sharded over the ranks: PyTorch's FSDP2 (`compute.sharding: fsdp`).

Each rank holds its rows of every tensor of the network; a block is gathered while it computes. The optimizer's half
of it is in update.shards.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

_BLOCKS = ("down_blocks", "up_blocks")


def shard(unet: Any, dtype: torch.dtype) -> None:
    """Shard the parameters of a UNet over all ranks, block by block, in place; names stay.

    Args:
        dtype: of the computation. In bf16 the trained weights are gathered in bf16, and their gradients are summed in
            float32.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for name in _BLOCKS:
        for block in getattr(unet, name):
            fully_shard(block, mp_policy=policy)
    fully_shard(unet.mid_block, mp_policy=policy)
    fully_shard(unet, mp_policy=policy)
    for part in unet.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)  # the loss has its share in it already: gradients are sums
            part.set_force_sum_reduction_for_comms(True)  # gloo has no other way to sum
