"""The optimizers (AdamW as PyTorch has it, and AdamW whose two moments take one byte each) and the averages.

AdamW (Loshchilov, Hutter 2019, arXiv 1711.05101), update n of a weight w with gradient g:

    m = beta1 m + (1 - beta1) g            v = beta2 v + (1 - beta2) g^2
    w = w (1 - lr decay) - lr (m / (1 - beta1^n)) / (sqrt(v / (1 - beta2^n)) + eps)

With `adamw_8bit` m and v are kept as in Dettmers et al. 2021 ("8-bit Optimizers via Block-wise Quantization", arXiv
2110.02861): blocks of 256 values, each scaled by its largest magnitude and rounded to the nearest of 256 values of a
dynamic data type; the update itself is computed in float32. The type (their section 2.1): of the bits after the sign,
the zeros before the first one are the exponent E, and the F bits behind it count through the middles of 2^F equal
parts of 0.1 to 1, times 10^-E; 0 and 1 are values of their own, -1 is not. v has no sign: its bit doubles the parts.

One difference from the paper: a v that is not 0 never becomes 0. Rounded to 0 it would make the next update m / eps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from altdiffusion.training.config.optimizer import OptimizerConfig

BLOCK = 256
SMALLEST = 4096
"""Weights with fewer values keep float32 moments: they take few bytes, and norms and biases are sensitive."""


def make_optimizer(config: OptimizerConfig, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer of a run, its state made at once, so that a checkpoint always holds all of it.

    `state[parameter]` holds `step` (float32 scalar) and tensors that a checkpoint keeps.
    """
    if config.kind == "adamw_8bit":
        return AdamW8bit(parameters, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay)
    optimizer = torch.optim.AdamW(
        parameters, lr=0.0, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=True
    )
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }
    return optimizer


def dynamic_values(signed: bool) -> Tensor:
    """Return the 256 values of the dynamic data type, ascending: float32, within -1..1 or 0..1."""
    positive = []
    for exponent in range(7):
        parts = 2 ** (6 - exponent + (0 if signed else 1))
        for part in range(parts):
            positive.append((0.1 + 0.9 * (part + 0.5) / parts) * 10.0**-exponent)
    values = [*positive, 0.0, 1.0, *([-value for value in positive] if signed else [])]
    return torch.tensor(sorted(values), dtype=torch.float32)


class Codec:
    """Converts float32 values to one byte each and one float32 scale per block, and back."""

    def __init__(self, signed: bool, device: torch.device) -> None:
        values = dynamic_values(signed)
        self._values = values.to(device)
        self._middles = ((values[1:] + values[:-1]) / 2).to(device)
        self._signed = signed

    def empty(self, count: int) -> tuple[Tensor, Tensor]:
        """Return codes [count] and scales [blocks] of zeros."""
        zero = int((self._values == 0).nonzero())
        blocks = math.ceil(count / BLOCK)
        device = self._values.device
        return torch.full((count,), zero, dtype=torch.uint8, device=device), torch.zeros(blocks, device=device)

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Return float32 [count] of codes uint8 [count] and scales float32 [blocks]."""
        return self._values[codes.int()] * _spread(scales, codes.numel())

    def encode(self, values: Tensor, codes: Tensor, scales: Tensor) -> None:
        """Write float32 [count] into codes and scales."""
        count = values.numel()
        padded = torch.nn.functional.pad(values, (0, scales.numel() * BLOCK - count)).view(-1, BLOCK)
        torch.amax(padded.abs(), dim=1, out=scales)
        scaled = values / _spread(scales, count).clamp_(min=torch.finfo(torch.float32).tiny)
        nearest = torch.bucketize(scaled, self._middles, out_int32=True)
        if not self._signed:
            nearest = torch.where(values > 0, nearest.clamp(min=1), nearest)
        codes.copy_(nearest)


class AdamW8bit(torch.optim.Optimizer):  # type: ignore[misc]
    """AdamW with 8-bit moments (see the module). Weights and gradients are float32."""

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], *, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        super().__init__(parameters, {"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._codecs: dict[torch.device, tuple[Codec, Codec]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = self._fresh(parameter)

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._update(parameter, group)

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2), lr = self.state[weight], group["betas"], group["lr"]
        state["step"] += 1
        updates = float(state["step"])
        first, second = self._codecs[weight.device]
        gradient = weight.grad.reshape(-1).float()  # reshape: row by row, whatever the weight's memory layout
        small = "exp_avg" in state
        mean = state["exp_avg"] if small else first.decode(state["exp_avg_codes"], state["exp_avg_scales"])
        square = state["exp_avg_sq"] if small else second.decode(state["exp_avg_sq_codes"], state["exp_avg_sq_scales"])
        mean.mul_(beta1).add_(gradient, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        bottom = (square / (1 - beta2**updates)).sqrt_().add_(group["eps"])
        change = (mean / bottom).mul_(-lr / (1 - beta1**updates))
        weight.mul_(1 - lr * group["weight_decay"]).add_(change.view(weight.shape))
        if not small:
            first.encode(mean, state["exp_avg_codes"], state["exp_avg_scales"])
            second.encode(square, state["exp_avg_sq_codes"], state["exp_avg_sq_scales"])

    def _fresh(self, parameter: Tensor) -> dict[str, Tensor]:
        device, count = parameter.device, parameter.numel()
        if device not in self._codecs:
            self._codecs[device] = Codec(True, device), Codec(False, device)
        state = {"step": torch.zeros((), dtype=torch.float32)}  # on the host, which computes the corrections from it
        for name, codec in zip(("exp_avg", "exp_avg_sq"), self._codecs[device], strict=True):
            if count < SMALLEST:
                state[name] = torch.zeros(count, device=device)
            else:
                state[f"{name}_codes"], state[f"{name}_scales"] = codec.empty(count)
        return state


def _spread(scales: Tensor, count: int) -> Tensor:
    """Return each block's scale for each of its values, [count]."""
    return scales.repeat_interleave(BLOCK)[:count]


def state_bytes(config: OptimizerConfig, counts: Iterable[int]) -> int:
    """Return the bytes of the moments of weights with these numbers of values."""
    if config.kind == "adamw":
        return sum(8 * count for count in counts)
    return sum(8 * count if count < SMALLEST else 2 * (count + 4 * math.ceil(count / BLOCK)) for count in counts)


class Ema:
    """Exponential moving averages of the trained weights: average + (1 - decay) (weight - average).

    Only what is trained has an average: that of a frozen weight would be the weight itself.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._weights = [weight.detach() for weight in weights]
        self.averages = [weight.clone() for weight in self._weights]

    def update(self, decay: float) -> None:
        """Update all averages in one call; see OptimizerConfig.ema_decay_at."""
        torch._foreach_lerp_(self.averages, self._weights, 1.0 - decay)
