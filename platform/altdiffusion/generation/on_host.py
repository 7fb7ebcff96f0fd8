"""Results of a device, read later: while a batch is read, the device works on the next one."""

from __future__ import annotations

import torch
from torch import Tensor


class OnHost:
    """Copies of tensors in host memory. Only `read` waits for the device, and for nothing that was issued later.

    Args:
        tensors: on one device; their values may still have to be computed.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._copies = [_copy(tensor) for tensor in tensors]
        self._copied = torch.cuda.Event() if tensors[0].is_cuda else None
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(tensors[0].device))

    def read(self) -> list[Tensor]:
        """Return the copies, once they are there."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._copies


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return small values of the host on a device, without waiting for what it computes."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def _copy(tensor: Tensor) -> Tensor:
    """Return a copy that a GPU will have made at some time; a tensor of the CPU itself."""
    if not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)  # from other memory, the copy would wait
    return host.copy_(tensor, non_blocking=True)
