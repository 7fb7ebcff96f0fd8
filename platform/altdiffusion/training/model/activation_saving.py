"""What the backward pass does not need to keep: inputs of frozen convolutions, and copies divided by 1.

Only the gradient of its input is wanted from a frozen convolution, and the weight and the output's gradient give it.
PyTorch keeps the input all the same (pytorch/pytorch#133566); for linear layers it does not.

diffusers' residual and attention blocks end with a division by a scale that is 1 in Stable Diffusion: a copy of the
whole activation, forward and backward. Dividing by 1 is exact, so leaving it out is exact as well.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SCALES = ("output_scale_factor", "rescale_output_factor")


class _Convolution(torch.autograd.Function):  # type: ignore[misc]
    """A 2-d convolution whose weight and bias are constants. It keeps the weight alone, which exists anyway."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.settings = input.shape, (stride, padding, dilation, groups)
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.settings
        on_cpu = gradient.device.type == "cpu"
        # The kernel is the one that autograd calls. It wants an input for its shape. One number, repeated, has it; on a
        # CPU the kernel would copy that to a whole tensor, so it gets what has that shape and layout, or memory that
        # nobody writes to.
        if not on_cpu:
            shape_only = gradient.new_empty(1).expand(ctx.shape)
        elif gradient.shape == ctx.shape and gradient.is_contiguous():
            shape_only = gradient
        else:
            shape_only = gradient.new_empty(ctx.shape)
        found = torch.ops.aten.convolution_backward.default(
            gradient, shape_only, weight, None, stride, padding, dilation, False, [0, 0], groups, [True, False, False]
        )
        return found[0], None, None, None, None, None, None


class _FrozenConv2d(nn.Conv2d):  # type: ignore[misc]
    def forward(self, input: Tensor) -> Tensor:
        settings = (self.stride, self.padding, self.dilation, self.groups)
        result: Tensor = _Convolution.apply(input, self.weight, self.bias, *settings)
        return result


def keep_no_frozen_inputs(module: nn.Module) -> int:
    """Replace the frozen convolutions of a network, in place, by ones that keep no input; return how many.

    It is exact: the same kernels compute the same numbers.
    """
    count = 0
    for part in module.modules():
        plain = type(part) is nn.Conv2d and part.padding_mode == "zeros" and not isinstance(part.padding, str)
        if plain and not any(parameter.requires_grad for parameter in part.parameters()):
            part.__class__ = _FrozenConv2d
            count += 1
    return count


class _One:
    """The number 1 as a divisor: the result is the dividend itself."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: tuple[Any, ...], options: Any = None) -> Tensor:
        """Return the dividend. PyTorch asks here at once; `__rtruediv__` would come after an exception of its own.

        Anything but a division is a TypeError.
        """
        if function is not Tensor.div:
            return NotImplemented
        dividend: Tensor = arguments[0]
        return dividend


def skip_unit_scales(network: nn.Module) -> int:
    """Replace every scale of 1 in a network, in place, by one that costs nothing; return how many."""
    count = 0
    for part in network.modules():
        for name in _SCALES:
            if getattr(part, name, None) == 1.0:
                setattr(part, name, _One())
                count += 1
    return count
