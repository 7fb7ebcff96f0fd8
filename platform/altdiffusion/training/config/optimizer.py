"""How the weights move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OptimizerKind = Literal["adamw", "adamw_8bit"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW with linear warm-up to a constant learning rate (the published recipe's values by default)."""

    kind: OptimizerKind = "adamw"
    """`adamw_8bit` keeps the two moments in one byte each (training.update.optimizers): 2 bytes per weight, not 8."""
    lr: float = 1e-4
    warmup_steps: int = 10_000
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    ema_decay: float = 0.9999

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError("lr: must be positive; write e.g. 1e-4")
        if self.warmup_steps < 0:
            raise ValueError("warmup_steps: must not be negative; 0 means no warm-up")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas: must be in [0, 1); write e.g. [0.9, 0.999]")
        if self.eps <= 0:
            raise ValueError("eps: must be positive; write e.g. 1e-8")
        if self.weight_decay < 0:
            raise ValueError("weight_decay: must not be negative; 0 means none")
        if not 0 <= self.ema_decay < 1:
            raise ValueError("ema_decay: must be in [0, 1); 0 means no averaging")

    def lr_at(self, step: int) -> float:
        """Return the learning rate of the update from step `step` to `step + 1`: lr min(1, (step + 1) /
        warmup_steps)."""
        if self.warmup_steps == 0:
            return self.lr
        return self.lr * min(1.0, (step + 1) / self.warmup_steps)

    def ema_decay_at(self, update: int) -> float:
        """Return the EMA decay of update number n, counted from 1: min(ema_decay, (1 + n) / (10 + n))."""
        return min(self.ema_decay, (1 + update) / (10 + update))
