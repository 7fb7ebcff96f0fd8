"""How the weights move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from altdiffusion.constraints import Checked, at_least, each, from_below, positive

OptimizerKind = Literal["adamw", "adamw_8bit"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig(Checked):
    """AdamW with linear warm-up to a constant learning rate (the published recipe's values by default)."""

    kind: OptimizerKind = "adamw"
    """`adamw_8bit` keeps the two moments in one byte each (training.update.optimizers): 2 bytes per weight, not 8."""
    lr: Annotated[float, positive("write e.g. 1e-4")] = 1e-4
    warmup_steps: Annotated[int, at_least(0, "0 means no warm-up")] = 10_000
    betas: Annotated[tuple[float, float], each(from_below(0, 1, "write e.g. [0.9, 0.999]"))] = (0.9, 0.999)
    eps: Annotated[float, positive("write e.g. 1e-8")] = 1e-8
    weight_decay: Annotated[float, at_least(0, "0 means none")] = 0.01
    ema_decay: Annotated[float, from_below(0, 1, "0 means no averaging")] = 0.9999

    def lr_at(self, step: int) -> float:
        """Return the learning rate of the update from step `step` to `step + 1`: lr min(1, (step + 1) /
        warmup_steps)."""
        if self.warmup_steps == 0:
            return self.lr
        return self.lr * min(1.0, (step + 1) / self.warmup_steps)

    def ema_decay_at(self, update: int) -> float:
        """Return the EMA decay of update number n, counted from 1: min(ema_decay, (1 + n) / (10 + n))."""
        return min(self.ema_decay, (1 + update) / (10 + update))
