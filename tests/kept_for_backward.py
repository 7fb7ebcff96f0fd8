"""What a forward pass keeps for the backward pass, measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def kept_for_backward(network: torch.nn.Module) -> Iterator[dict[int, torch.UntypedStorage]]:
    """Yield the storages that autograd saves within the block, each once, without those of the weights.

    As long as they are held, no other tensor gets their address.
    """
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield kept


def total_bytes(kept: dict[int, torch.UntypedStorage]) -> int:
    """Return the bytes of storages."""
    return sum(storage.nbytes() for storage in kept.values())
