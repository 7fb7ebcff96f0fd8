"""Floating-point operations of one sample, counted on PyTorch's `meta` device: shapes, no data, no arithmetic.

A multiplication and an addition count as two, as in published peaks. Counted are the matrix products, convolutions
and attention of one forward and backward pass. The backward pass counts only what is trained, so that a K/V step has
fewer. What gradient checkpointing computes a second time is not counted: it is not progress (as in the definition of
MFU: Chowdhery et al. 2022, arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


def on_meta(module: torch.nn.Module) -> torch.nn.Module:
    """Return a copy on the `meta` device, without data: the same code, `requires_grad` as it was, no checkpointing."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        shape_only = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = torch.nn.Parameter(shape_only, requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    copied = copy.deepcopy(module, memo)
    for part in copied.modules():
        if getattr(part, "gradient_checkpointing", False):
            part.gradient_checkpointing = False
    return copied


def step_flops(module: torch.nn.Module, *inputs: Tensor, **named: Any) -> float:
    """Return the operations of a forward and backward pass; the parameters' `requires_grad` marks what is trained.

    Args:
        inputs, named: tensors on the `meta` device, and other arguments; the network returns a tuple whose first
            item is a tensor.
    """
    shapes_only = on_meta(module)
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        answer = shapes_only(*inputs, **named)[0]
        if answer.requires_grad:
            answer.sum().backward()
    return float(counter.get_total_flops())
