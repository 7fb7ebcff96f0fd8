"""Weights, gradients, moments and averages cut up over the ranks: PyTorch's FSDP2 (`compute.sharding: fsdp`).

Each rank holds its rows of every tensor of the network; a block is put together while it computes. Optimizer and
averages work on the rank's own rows, as plain tensors, with the same code as unsharded ones: AdamW and an average are
element by element. A checkpoint holds whole tensors, so any number of ranks, sharded or not, continues from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from altdiffusion.training.waiting import waiting

_BLOCKS = ("down_blocks", "up_blocks")


def shard(unet: Any, dtype: torch.dtype) -> None:
    """Cuts the parameters of a UNet over all ranks, block by block, in place; names stay.

    In bf16 the trained weights travel in bf16 and their gradients are summed in float32.
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
            part.set_force_sum_reduction_for_comms(True)  # gloo knows no other way to say so


class Shards:
    """This rank's rows of some sharded parameters.

    Args:
        parameters: as the sharded network has them.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._sharded: list[Any] = list(parameters)
        self.local = [nn.Parameter(parameter.detach().to_local()) for parameter in self._sharded]
        """The rows as parameters of their own, in the same memory."""

    def whole(self, number: int, rows: Tensor) -> Tensor:
        """A tensor like parameter `number`, of which every rank gives its rows."""
        like = self._sharded[number]
        found: Tensor = DTensor.from_local(
            rows, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
        return found

    def rows(self, number: int, whole: Tensor) -> Tensor:
        """This rank's rows of a whole tensor, which every rank has."""
        like = self._sharded[number]
        cut: Any = distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
        rows: Tensor = cut.to_local()
        return rows

    def take_gradients(self) -> None:
        """Gives the rows their gradients."""
        for mine, sharded in zip(self.local, self._sharded, strict=True):
            mine.grad = torch.zeros_like(mine) if sharded.grad is None else sharded.grad.to_local()


class ShardedGradients:
    """Gradients of a sharded network; see gradients.SummedGradients."""

    def __init__(self, network: Any, shards: Shards, parameters: Sequence[nn.Parameter]) -> None:
        self._network, self._shards, self._parameters = network, shards, list(parameters)

    def zero(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
        self._network.set_requires_gradient_sync(False)

    def last(self) -> None:
        self._network.set_requires_gradient_sync(True)

    def wait(self) -> None:
        self._shards.take_gradients()

    def norm(self) -> Tensor:
        norms = torch.stack(torch._foreach_norm([parameter.grad for parameter in self._shards.local]))
        squares = norms.square().sum()
        with waiting():
            dist.all_reduce(squares)
        return squares.sqrt()
