"""How the weights move."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from altdiffusion.config import added
from altdiffusion.constraints import Checked, Invalid, at_least, each, from_below, positive

OptimizerKind = Literal["adamw", "adamw_8bit"]
LrScheduler = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig(Checked):
    """AdamW with linear warm-up to a constant learning rate (the published recipe's values by default)."""

    kind: OptimizerKind = "adamw"
    """`adamw_8bit` keeps the two moments in one byte each (training.update.optimizers): 2 bytes per weight, not 8."""
    lr: Annotated[float, positive("write e.g. 1e-4")] = 1e-4
    """Learning rate after the warm-up."""
    warmup_steps: Annotated[int, at_least(0, "0 means no warm-up")] = 10_000
    """Steps over which the learning rate rises linearly to `lr`."""
    lr_scheduler: LrScheduler = added("constant")
    """The learning rate after the warm-up: `constant`, or a fall to `lr_end` that is `linear` or half a `cosine`, from
    step `decay_from` to step `decay_until`."""
    decay_from: Annotated[int | None, at_least(0, "steps are counted from the beginning of the run")] = added(None)
    """Step at which the fall begins. Null: the end of the warm-up, or the first step of a run that continues
    another."""
    decay_until: Annotated[int | None, at_least(1, "write e.g. the number of steps")] = added(None)
    """Step at which the learning rate reaches `lr_end`. Null: the run's last one. It is part of the run: more steps
    later do not stretch the fall."""
    lr_end: Annotated[float, at_least(0, "0 lets the learning rate fall to nothing")] = added(0.0)
    """Learning rate at the end of the fall."""
    max_grad_norm: Annotated[float | None, positive("1.0 is usual, null switches it off")] = added(None)
    """Scales the gradient of an update down to this L2 norm, over all that is trained, where it is larger. Null leaves
    it as it is."""
    betas: Annotated[tuple[float, float], each(from_below(0, 1, "write e.g. [0.9, 0.999]"))] = (0.9, 0.999)
    """AdamW's decay of the first and second moment."""
    eps: Annotated[float, positive("write e.g. 1e-8")] = 1e-8
    """AdamW's epsilon."""
    weight_decay: Annotated[float, at_least(0, "0 means none")] = 0.01
    """AdamW's decoupled weight decay."""
    ema_decay: Annotated[float, from_below(0, 1, "0 means no averaging")] = 0.9999
    """Decay of the averaged weights, which exports have; 0 switches the averages off."""

    def conflicts(self) -> Iterator[Invalid]:
        if self.lr_scheduler == "constant":
            for name, unset in (("decay_from", None), ("decay_until", None), ("lr_end", 0.0)):
                if getattr(self, name) != unset:
                    yield Invalid(
                        name, "is given, and a constant learning rate does not fall", "set lr_scheduler: cosine"
                    )
        elif self.lr_end >= self.lr:
            yield Invalid("lr_end", f"is not below lr ({self.lr:g})", "0 lets it fall to nothing")
        first = self.warmup_steps if self.decay_from is None else self.decay_from
        if first < self.warmup_steps:
            yield Invalid("decay_from", f"is before the end of the warm-up ({self.warmup_steps})", "leave it out")
        if self.decay_until is not None and self.decay_until <= first:
            yield Invalid("decay_until", f"is not after step {first}, where the fall begins", "give a later one")

    def lr_at(self, step: int) -> float:
        """Return the learning rate of the update from step `step` to `step + 1`.

        In the warm-up it is lr (step + 1) / warmup_steps. With t = (step - decay_from) / (decay_until - decay_from),
        within [0, 1], it then is lr_end + (lr - lr_end) f(t), where f is 1 (constant), 1 - t (linear) or
        (1 + cos(pi t)) / 2 (cosine), as in transformers' and diffusers' schedules of these names.

        Raises:
            ValueError: a step of the fall is left out (training.run.resolve fills it in).
        """
        if step < self.warmup_steps:
            return self.lr * min(1.0, (step + 1) / self.warmup_steps)
        if self.lr_scheduler == "constant":
            return self.lr
        if self.decay_from is None or self.decay_until is None:
            raise ValueError("decay_from and decay_until are not resolved")
        done = min(1.0, max(0.0, (step - self.decay_from) / (self.decay_until - self.decay_from)))
        left = 1.0 - done if self.lr_scheduler == "linear" else (1.0 + math.cos(math.pi * done)) / 2.0
        return self.lr_end + (self.lr - self.lr_end) * left

    def ema_decay_at(self, update: int) -> float:
        """Return the EMA decay of update number n, counted from 1: min(ema_decay, (1 + n) / (10 + n))."""
        return min(self.ema_decay, (1 + update) / (10 + update))
