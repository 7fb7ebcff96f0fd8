"""Which code computes a UNet's attention."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from altdiffusion.errors import AltDiffusionError
from altdiffusion.training.config.compute import Attention


def set_attention(unet: Any, name: Attention, device: torch.device) -> None:
    """Set the implementation of every attention block.

    Raises:
        AltDiffusionError: xformers is requested where it is not installed, or without a GPU.
    """
    from diffusers.models import attention_processor

    if name == "xformers":
        what = "config key compute.attention, value 'xformers'"
        if importlib.util.find_spec("xformers") is None:
            raise AltDiffusionError(
                what, "is not installed", "pip install 'altdiffusion-platform[xformers]', or use attention: sdpa"
            )
        if device.type != "cuda":
            raise AltDiffusionError(what, f"does not run on {device.type}", "use attention: sdpa")
        unet.set_attn_processor(attention_processor.XFormersAttnProcessor())
    elif name == "eager":
        unet.set_attn_processor(attention_processor.AttnProcessor())
    else:
        unet.set_attn_processor(attention_processor.AttnProcessor2_0())
