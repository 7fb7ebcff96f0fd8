"""How a worker computes."""

from __future__ import annotations

from dataclasses import dataclass

from altdiffusion.config import operational


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeConfig:
    """How a worker computes. All of it is operational: like the number of workers it changes the rounding of sums and
    nothing else. `precision`, which changes more than that, stands in the run itself and is part of its fingerprint.
    """

    peak_tflops: float | None = operational(None)
    """Peak of one worker in TFLOP/s, for the MFU that is logged. Null: the data sheet's of a known GPU (A100, H100,
    H200), else that of a matrix product, measured at the start."""

    def __post_init__(self) -> None:
        if self.peak_tflops is not None and self.peak_tflops <= 0:
            raise ValueError("peak_tflops: must be positive; null takes the data sheet's, or measures")
