"""How a worker computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from altdiffusion.config import operational
from altdiffusion.constraints import Checked, Invalid, positive

if TYPE_CHECKING:
    import torch

Attention = Literal["sdpa", "xformers", "eager"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeConfig(Checked):
    """How a worker computes. All of it is operational: like the number of workers it changes the rounding of sums and
    nothing else. `precision`, which changes more than that, is a setting of the run and part of its fingerprint.
    """

    attention: Attention = operational("sdpa")
    """`sdpa`: PyTorch's own fused kernels. `xformers`: an extra of this package, GPU only. `eager`: products and
    softmax, one after the other."""
    channels_last: bool | None = operational(None)
    """Whether convolutions run on channels-last tensors. Null: on a GPU, where tensor cores want it; on the CPU it
    gains nothing."""
    lean: bool = operational(True)
    """Saves activations: frozen convolutions keep no input for the backward pass, and no block divides by 1. Exact."""
    pads_once: bool = operational(True)
    """Computes one pad per caption, whose vector all pads of the caption have, instead of each of them: in the text
    encoder, and for keys and values. Without `compile`, which wants one shape."""
    gradient_checkpointing: bool = operational(False)
    """Keeps the inputs of the UNet's blocks alone and computes the rest again in the backward pass: much less memory
    for about a third more time. Exact."""
    compile: bool = operational(False)
    """torch.compile for the UNet: minutes at the start, faster steps on a GPU."""
    cuda_graphs: bool = operational(False)
    """Records a micro-batch as CUDA graphs (with `compile`): pays where micro-batches are small."""
    sharding: Literal["ddp", "fsdp"] = operational("ddp")
    """With several workers: `ddp` keeps all weights on each; `fsdp` shards weights, gradients, moments and averages
    (FSDP2), for networks or GPUs where they do not fit."""
    peak_tflops: Annotated[float | None, positive("null takes the data sheet's, or measures")] = operational(None)
    """Peak of one worker in TFLOP/s, for the MFU that is logged. Null: the data sheet's of a known GPU (A100, H100,
    H200), else that of a matrix product, measured at the start."""

    def conflicts(self) -> Iterator[Invalid]:
        if self.cuda_graphs and not self.compile:
            yield Invalid("cuda_graphs", "are made by the compiler", "set compile: true too")
        if self.sharding == "fsdp" and (self.compile or self.channels_last):
            yield Invalid("sharding", "goes with neither compile nor channels_last", "leave them off, or use ddp")

    def channels_last_on(self, device: torch.device) -> bool:
        """Return whether convolutions run on channels-last tensors on that device."""
        if self.sharding == "fsdp":  # FSDP2 shards contiguous weights only
            return False
        return device.type == "cuda" if self.channels_last is None else self.channels_last
