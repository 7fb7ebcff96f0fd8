"""Detects that the loss leaves its course.

A loss x is a spike if x > m + factor * 1.4826 * MAD, with m the median of the last `window` losses without spikes and
MAD the median of |loss - m|; 1.4826 MAD estimates the standard deviation of a normal distribution and is not moved by
outliers (Rousseeuw and Croux, "Alternatives to the median absolute deviation", 1993). The answer depends on the losses
alone, which are kept in the checkpoint: a run that was killed and started again decides the same.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

from altdiffusion.training.config import SpikeConfig

MAD_TO_SIGMA = 1.4826
SMALLEST_SPREAD = 1e-3
"""Smallest spread, as a share of the median: where losses hardly differ, none is a spike for that."""


class LossSpiked(Exception):
    """Enough spikes in a row to send the run back; batches [first, after) caused them."""

    def __init__(self, first: int, after: int, loss: float, limit: float) -> None:
        super().__init__(f"loss {loss:.4g} in batches {first} to {after - 1}, above {limit:.4g}")
        self.first, self.after = first, after


class SpikeGuard:
    """Judges the losses of the steps, each the mean over all ranks."""

    def __init__(self, config: SpikeConfig) -> None:
        self._config = config
        self._losses: deque[float] = deque(maxlen=config.window)
        self._spikes = 0
        self._first = 0

    def judge(self, loss: float, batch: int) -> None:
        """Judge the loss of a batch.

        Raises:
            LossSpiked: it is one spike in a row too many: the run goes back.
        """
        if not math.isfinite(loss):  # the trainer has skipped it
            return
        limit = self.limit()
        if loss <= limit:
            self._spikes = 0
            self._losses.append(loss)
            return
        if self._spikes == 0:
            self._first = batch
        self._spikes += 1
        if self._spikes >= self._config.steps:
            raise LossSpiked(self._first, batch + 1, loss, limit)

    def limit(self) -> float:
        """Return the loss above which the next one is a spike."""
        if len(self._losses) < self._config.window:
            return math.inf
        median = statistics.median(self._losses)
        deviation = statistics.median(abs(loss - median) for loss in self._losses)
        spread = max(MAD_TO_SIGMA * deviation, SMALLEST_SPREAD * abs(median))
        return median + self._config.factor * spread

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of it."""
        return {"losses": list(self._losses), "spikes": self._spikes, "first": self._first}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what a checkpoint kept."""
        self._losses.extend(state["losses"])
        self._spikes, self._first = state["spikes"], state["first"]
