"""Floating-point operations of one sample, counted on PyTorch's `meta` device: shapes, no data, no arithmetic.

A multiplication and an addition count as two, as in published peaks. Counted are the matrix products, convolutions
and attention of one forward and backward pass; the backward pass with what is trained and no more, so that a K/V step
has fewer. What gradient checkpointing computes a second time is not counted: it is no progress (as in the definition
of MFU: Chowdhery et al. 2022, arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


def step_flops(module: torch.nn.Module, *inputs: Tensor, **named: Any) -> float:
    """Operations of a forward and backward pass of a network as it stands: its parameters' `requires_grad` decides.

    Args:
        inputs, named: tensors on the `meta` device, and other arguments; the network returns a tuple whose first
            item is a tensor.
    """
    state: dict[str, Tensor] = {
        name: torch.empty_like(parameter, device="meta").requires_grad_(parameter.requires_grad)
        for name, parameter in module.named_parameters()
    }
    state |= {name: torch.empty_like(buffer, device="meta") for name, buffer in module.named_buffers()}
    with _as_written(module), FlopCounterMode(display=False) as counter, torch.enable_grad():
        answer = torch.func.functional_call(module, state, inputs, named)[0]
        if answer.requires_grad:
            answer.sum().backward()
    return float(counter.get_total_flops())


@contextmanager
def _as_written(module: torch.nn.Module) -> Iterator[None]:
    """Not compiled, and nothing computed twice."""
    switched = [part for part in module.modules() if getattr(part, "gradient_checkpointing", False)]
    compiled, module._compiled_call_impl = module._compiled_call_impl, None
    for part in switched:
        part.gradient_checkpointing = False
    try:
        yield
    finally:
        module._compiled_call_impl = compiled
        for part in switched:
            part.gradient_checkpointing = True
