"""What the optimizer moves of a network that is sharded over the ranks (model.sharding): this rank's rows.

Optimizer and averages work on the rank's own rows, as plain tensors, with the same code as on unsharded ones: AdamW
and an average are element by element. A checkpoint holds whole tensors, so any number of ranks, sharded or not,
continues from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from altdiffusion.training.waiting import waiting


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
        """Return a tensor like parameter `number`, of which every rank gives its rows."""
        like = self._sharded[number]
        found: Tensor = DTensor.from_local(
            rows, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
        return found

    def rows(self, number: int, whole: Tensor) -> Tensor:
        """Return this rank's rows of a whole tensor, which every rank has."""
        like = self._sharded[number]
        sharded: Any = distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
        rows: Tensor = sharded.to_local()
        return rows

    def take_gradients(self) -> None:
        """Give the rows their gradients."""
        for mine, sharded in zip(self.local, self._sharded, strict=True):
            mine.grad = torch.zeros_like(mine) if sharded.grad is None else sharded.grad.to_local()


class ShardedGradients:
    """The gradients of a sharded network; see gradients.Gradients."""

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

    def scale(self, factor: Tensor) -> None:
        torch._foreach_mul_([parameter.grad for parameter in self._shards.local], factor)
