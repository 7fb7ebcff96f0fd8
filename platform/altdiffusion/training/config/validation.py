"""What is measured on held-out rows while a run trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from altdiffusion.constraints import Checked, at_least


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig(Checked):
    """The loss on rows that the run does not train on, at fixed timesteps and with fixed noise, per language.

    The loss of a training step is that of one random timestep per sample, and hardly shows progress. Nothing here
    changes the weights: `patience` decides when a run ends.
    """

    dataset: str
    """Dataset of held-out latents, such as the <name>-held-out of an encode job; `name@digest` pins a version."""
    every: Annotated[int, at_least(1)] = 1000
    """Steps from one measurement to the next; step 0 and the last one are always measured."""
    rows_per_language: Annotated[int, at_least(1)] = 32
    """Rows of each language, spread evenly over the dataset; all, where there are fewer."""
    timesteps: Annotated[int, at_least(1)] = 10
    """Timesteps of each row: the middles of as many equal parts of the schedule."""
    patience: Annotated[int | None, at_least(1, "null trains to the last step")] = None
    """Ends the run after so many measurements in a row without a lower mean over languages. Null does not."""
