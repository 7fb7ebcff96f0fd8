"""The peak that MFU (model FLOPs utilisation) is measured against: given, published, or measured on the spot."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass

import torch

PUBLISHED: dict[tuple[str, str], float] = {
    ("A100", "bf16"): 312.0,
    ("H100", "bf16"): 989.0,
    ("H200", "bf16"): 989.0,
    ("A100", "fp32"): 19.5,
    ("H100", "fp32"): 67.0,
    ("H200", "fp32"): 67.0,
}
"""Dense TFLOP/s of NVIDIA's data sheets (SXM boards), by a part of the device's name and the run's precision."""

_MEASURED_SIDE = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The peak of one worker."""

    tflops: float
    name: str
    """Where the figure comes from."""


def find_peak(device: torch.device, precision: str, given: float | None = None) -> Peak:
    """Return the peak of one worker: `given`, else the published one, else that of a matrix product measured now.

    A CPU has no meaningful published peak (it depends on clock, cores and neighbours), and the table lacks some GPUs:
    there the best of a few large matrix products in the run's precision is taken instead, and is named so.
    """
    if given is not None:
        return Peak(tflops=given, name="as configured")
    if device.type == "cuda":
        device_name = torch.cuda.get_device_name(device)
        for (part, kind), tflops in PUBLISHED.items():
            if part in device_name and kind == precision:
                return Peak(tflops=tflops, name=f"{part}, data sheet")
    return Peak(tflops=_measure(device.type, precision, torch.get_num_threads()), name="matrix product, measured")


@functools.cache
def _measure(device: str, precision: str, threads: int) -> float:
    """Return the best of five products of square matrices, in TFLOP/s; `threads` only keys the cache."""
    side = _MEASURED_SIDE.get(device, 1024)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    product = matrix @ matrix  # the first product prepares kernels and threads
    if device == "cuda":
        torch.cuda.synchronize()
    best = 0.0
    # On a CPU the time of this thread, one of those that share the product: neighbours on the machine are not its peak.
    clock = time.thread_time if device == "cpu" else time.perf_counter
    for _ in range(5):
        began = clock()
        product = matrix @ matrix
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * side**3 / max(clock() - began, 1e-9) / 1e12)
    del product
    return best
