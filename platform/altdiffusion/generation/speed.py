"""Settings of speed. Each may change bits, so all are part of the fingerprint and of the row keys."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from altdiffusion.config import added
from altdiffusion.constraints import Checked, Invalid, at_least
from altdiffusion.errors import AltDiffusionError

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedConfig(Checked):
    """How the networks are computed. The defaults compute what diffusers computes."""

    deep_cache: Annotated[int, at_least(1, "1 computes the whole UNet at every step")] = added(1)
    """The UNet's deep blocks are computed at every n-th step only, and their output is used again (DeepCache)."""
    channels_last: bool = added(False)
    """Whether convolutions run on channels-last tensors, as the tensor cores of a GPU want them."""
    compile: bool = added(False)
    """torch.compile for UNet and VAE: minutes for every size and sampler form at the start, faster steps afterwards.
    Batches are always full then, because every shape is compiled on its own."""
    cuda_graphs: bool = added(False)
    """Records the UNet's calls as CUDA graphs (with `compile`): pays where a batch is small."""
    tf32: Literal["none", "convolutions", "all"] = added("convolutions")
    """What a GPU computes in TF32 instead of float32, where `dtype` is float32: 10 bits of mantissa instead of 23.
    `convolutions` is PyTorch's own default; matrix products stay exact then."""

    def conflicts(self) -> Iterator[Invalid]:
        if self.cuda_graphs and not self.compile:
            yield Invalid("cuda_graphs", "are made by the compiler", "set compile: true too")

    def conflicts_on(self, device: Device) -> Iterator[Invalid]:
        """Yield what is invalid on a device."""
        if device == "cpu" and self.cuda_graphs:
            yield Invalid("speed.cuda_graphs", "need device cuda, and device is cpu", "leave them out, or use a GPU")
        if device == "cpu" and self.tf32 != "convolutions":
            yield Invalid("speed.tf32", "is of GPUs, and device is cpu", "leave it out, or use a GPU")

    def check_steps(self, steps: int, what: str) -> None:
        """Refuse an interval of DeepCache that is longer than all steps.

        Raises:
            AltDiffusionError: the error states both.
        """
        if self.deep_cache > steps:
            raise AltDiffusionError(
                f"speed.deep_cache {self.deep_cache}",
                f"is more than the {steps} steps of {what}",
                f"use at most {steps}, or more steps",
            )


def check_compiler(speed: SpeedConfig, device: Device) -> None:
    """Refuse `compile` on a machine without a C++ compiler; on a GPU the Triton compiler calls one too.

    Raises:
        AltDiffusionError: the error states which one is missing.
    """
    compiler = os.environ.get("CXX", "g++") if device == "cpu" else os.environ.get("CC", "gcc")
    if speed.compile and shutil.which(compiler) is None:
        raise AltDiffusionError(
            "speed.compile",
            f"needs the compiler {compiler}, and this machine has none of that name",
            "install it, name another one in the variable CXX (CPU) or CC (GPU), or leave compile out",
        )
