"""Frozen convolutions that keep nothing of their input for the backward pass.

Of a frozen convolution only the gradient of the input is wanted, which the weight and the output's gradient give.
PyTorch keeps the input all the same (pytorch/pytorch#133566); for linear layers it does not.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Convolution(torch.autograd.Function):  # type: ignore[misc]
    """A 2-d convolution whose weight and bias are constants; keeps the weight alone, which exists anyway."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.settings = input.shape, (stride, padding, dilation, groups)
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.settings
        # The kernel is the one that autograd calls. It wants an input for its shape; one number, repeated, has it.
        shape_only = gradient.new_empty(1).expand(ctx.shape)
        found = torch.ops.aten.convolution_backward(
            gradient, shape_only, weight, None, stride, padding, dilation, False, [0, 0], groups, [True, False, False]
        )
        return found[0], None, None, None, None, None, None


class _FrozenConv2d(nn.Conv2d):  # type: ignore[misc]
    def forward(self, input: Tensor) -> Tensor:
        settings = (list(self.stride), list(self.padding), list(self.dilation), self.groups)
        result: Tensor = _Convolution.apply(input, self.weight, self.bias, *settings)
        return result


def keep_no_frozen_inputs(module: nn.Module) -> int:
    """Exchanges the frozen convolutions of a network for lean ones, in place; returns how many. Exact: the same kernels
    compute the same numbers."""
    count = 0
    for part in module.modules():
        plain = type(part) is nn.Conv2d and part.padding_mode == "zeros" and not isinstance(part.padding, str)
        if plain and not any(parameter.requires_grad for parameter in part.parameters()):
            part.__class__ = _FrozenConv2d
            count += 1
    return count
