"""What all ranks of a run do together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.distributed as dist
from torch import Tensor

from altdiffusion.training.waiting import waiting

T = TypeVar("T")


def mean_over_ranks(value: Tensor, world: int) -> Tensor:
    """Replace a value by its mean over the ranks, and return it."""
    if world > 1:
        with waiting():
            dist.all_reduce(value)
        value /= world
    return value


def agree(action: Callable[[], T], rank: int, world: int) -> T:
    """Run an action on rank 0 and return its result, or raise its error, on every rank: none is left waiting."""
    if world == 1:
        return action()
    outcome: list[Any] = [None, None]
    if rank == 0:
        try:
            outcome[0] = action()
        except Exception as error:
            outcome[1] = error
    with waiting():
        dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return cast(T, outcome[0])
