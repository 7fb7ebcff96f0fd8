"""What a run does about losses that leave their course."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from altdiffusion.config import operational
from altdiffusion.constraints import Checked, Invalid, at_least, positive


@dataclass(frozen=True, kw_only=True, slots=True)
class SpikeConfig(Checked):
    """When a loss counts as a spike, and how many steps of it send the run back (see training.faults.spikes)."""

    factor: Annotated[float, positive("6 lets noise pass")] = 6.0
    """Standard deviations (estimated from the median absolute deviation) above the median of the window."""
    window: Annotated[int, at_least(8, "fewer losses do not show their spread")] = 100
    """Steps that the median is taken over; no loss is judged before the window is full."""
    steps: Annotated[int, at_least(1, "3 lets single spikes pass")] = 3
    """Spikes in a row that send the run back to the last checkpoint before them."""
    max_rollbacks: Annotated[int, at_least(1, "leave spike out to switch it off")] = operational(3)
    """Times that a run is sent back before it stops."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardsConfig(Checked):
    """What a run does about bad losses; off by default. (Steps whose loss or gradient is not finite are always
    skipped, see max_bad_steps.)"""

    spike: SpikeConfig | None = None
    """Goes back to the last good checkpoint when the loss spikes, and leaves out the batches that caused it. Costs one
    wait for the GPU in every step."""
    skip_batches: tuple[tuple[int, int], ...] = ()
    """Numbers of batches that are left out, as [first, one after the last], in ascending order."""

    def conflicts(self) -> Iterator[Invalid]:
        end = -math.inf
        for first, after in self.skip_batches:
            if not 0 <= first < after or first < end:
                yield Invalid("skip_batches", "must be [first, after] in ascending order", "write e.g. [[100, 103]]")
            end = after
