"""Gradients of one update, summed over micro-batches and ranks.

All gradients are in one flat buffer, divided into buckets. While the backward pass of the last micro-batch still runs,
a bucket whose gradients are complete is already being summed over the ranks. The layout never changes, so the same
inputs are summed in the same order before and after a restart: torch's DistributedDataParallel rebuilds its buckets
after the first step of a process, which changes the rounding of sums over more than two ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from altdiffusion.training.waiting import waiting

BUCKET_BYTES = 32 << 20


class Gradients(Protocol):
    """The gradients of one update. Use: `zero()`, backward of each micro-batch with `last()` called before the last
    one, then `wait()`."""

    def zero(self) -> None: ...

    def last(self) -> None:
        """Note that the next backward pass is the last of this update."""

    def wait(self) -> None:
        """Wait until every gradient holds the sum over all ranks."""

    def norm(self) -> Tensor:
        """Return the L2 norm of all gradients, on the device; it is the same on all ranks."""
        ...

    def scale(self, factor: Tensor) -> None:
        """Multiply all gradients by a scalar on the device, in place."""


class OwnGradients:
    """The gradients of the only rank, as autograd leaves them."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self._parameters = list(parameters)

    def zero(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def last(self) -> None:
        pass

    def wait(self) -> None:
        pass

    def norm(self) -> Tensor:
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))

    def scale(self, factor: Tensor) -> None:
        torch._foreach_mul_([p.grad for p in self._parameters if p.grad is not None], factor)


class SummedGradients:
    """The gradients of `parameters` (one dtype, one device) in one buffer, summed over all ranks; see Gradients.

    With one rank nothing is summed, and the gradients' memory stays where it is from update to update, as CUDA graphs
    want it.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], bucket_bytes: int = BUCKET_BYTES) -> None:
        backward_order = list(reversed(parameters))
        self._flat = torch.zeros(
            sum(p.numel() for p in backward_order), dtype=backward_order[0].dtype, device=backward_order[0].device
        )
        self._buckets: list[Tensor] = []
        self._sizes: list[int] = []  # parameters in each bucket
        first = end = members = 0
        for number, parameter in enumerate(backward_order):
            # In the weight's memory layout (e.g. channels_last): fused optimizers go through both in parallel.
            parameter.grad = self._flat.as_strided(parameter.shape, parameter.stride(), end)
            end, members = end + parameter.numel(), members + 1
            parameter.register_post_accumulate_grad_hook(self._hook(len(self._buckets)))
            if (end - first) * self._flat.element_size() >= bucket_bytes or number + 1 == len(backward_order):
                self._buckets.append(self._flat[first:end])
                self._sizes.append(members)
                first, members = end, 0
        self._missing: list[int] = []
        self._works: list[Any] = []
        self._counting = False
        self._alone = not dist.is_initialized() or dist.get_world_size() == 1

    def zero(self) -> None:
        self._flat.zero_()

    def last(self) -> None:
        """Let the sums start as soon as they can."""
        self._missing = list(self._sizes)
        self._counting = not self._alone

    def wait(self) -> None:
        if self._alone:
            return
        self._counting = False
        self._start(len(self._buckets))  # a parameter that the loss does not reach never reports
        with waiting():
            for work in self._works:
                work.wait()
        self._works = []

    def norm(self) -> Tensor:
        return torch.linalg.vector_norm(self._flat)

    def scale(self, factor: Tensor) -> None:
        self._flat.mul_(factor)

    def _hook(self, bucket: int) -> Any:
        def ready(_: Tensor) -> None:
            if self._counting:
                self._missing[bucket] -= 1
                done = len(self._works)
                while done < len(self._missing) and self._missing[done] == 0:
                    done += 1
                self._start(done)

        return ready

    def _start(self, end: int) -> None:
        """Start the sums of the buckets before `end`, in their order, which is the same on every rank."""
        for number in range(len(self._works), end):
            self._works.append(dist.all_reduce(self._buckets[number], async_op=True))
