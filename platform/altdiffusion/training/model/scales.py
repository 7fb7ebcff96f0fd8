"""Blocks that divide their output by 1, and no longer do.

diffusers' residual and attention blocks end with a division by a scale that is 1 in Stable Diffusion: a copy of the
whole activation, forward and backward. Dividing by 1 is exact, so leaving it out is too.
"""

from __future__ import annotations

from torch import Tensor, nn

_SCALES = ("output_scale_factor", "rescale_output_factor")


class _One:
    """The number 1 as a divisor: the dividend itself is the answer."""

    def __rtruediv__(self, dividend: Tensor) -> Tensor:
        return dividend


def skip_unit_scales(network: nn.Module) -> int:
    """Exchanges every scale of 1 in a network for one that costs nothing, in place; returns how many."""
    count = 0
    for part in network.modules():
        for name in _SCALES:
            if getattr(part, name, None) == 1.0:
                setattr(part, name, _One())
                count += 1
    return count
