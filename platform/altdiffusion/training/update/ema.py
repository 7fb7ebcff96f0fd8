"""Exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Ema:
    """average <- average + (1 - decay) (weight - average), for all tensors in one call.

    Only what is trained has an average: of a frozen weight it would be the weight itself.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._weights = [weight.detach() for weight in weights]
        self.averages = [weight.clone() for weight in self._weights]

    def update(self, decay: float) -> None:
        """One update with that decay; see OptimizerConfig.ema_decay_at."""
        torch._foreach_lerp_(self.averages, self._weights, 1.0 - decay)
