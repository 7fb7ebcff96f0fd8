"""What is learned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from altdiffusion.config import added, operational
from altdiffusion.constraints import Checked, Invalid, at_least, positive
from altdiffusion.diffusion.objective import Prediction


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig(Checked):
    """What is learned (see diffusion.objective). A setting that is left out is taken from the base, or from the run
    that is started from; the noise schedule always is."""

    prediction: Prediction | None = None
    """What the UNet predicts: the noise (epsilon) or the velocity (v_prediction). Null: what the start predicts."""
    min_snr_gamma: Annotated[float | None, positive("the paper takes 5, null switches it off")] = None
    """Caps the weight of easy steps at this signal-to-noise ratio; the paper takes 5. Null weights all alike."""
    zero_terminal_snr: bool | None = None
    """Leaves no signal in the last step, so that very dark and very light images can be drawn; needs v. Null: as the
    start was trained."""
    noise_offset: Annotated[float, at_least(0, "0.1 is usual, 0 switches it off")] = added(0.0)
    """Adds one normal number per image and channel, times this, to the noise, so that the mean brightness is learned
    too (crosslabs.org, "Diffusion with Offset Noise"; `noise_offset` in diffusers' scripts)."""
    relearn: bool = operational(False)
    """Allows another prediction or last step than the start's: the UNet then has to learn its prediction again."""

    def conflicts(self) -> Iterator[Invalid]:
        if self.zero_terminal_snr and self.prediction == "epsilon":
            yield Invalid(
                "zero_terminal_snr",
                "needs another prediction: without signal, the noise teaches nothing about the image",
                "use prediction: v_prediction",
            )
