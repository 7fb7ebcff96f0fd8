"""Arguments of the verbs that draw: how, and on which device."""

from __future__ import annotations

import argparse
import os
from typing import Any, get_args

from altdiffusion.generation.settings import SamplerName


def drawing_arguments(parser: argparse.ArgumentParser) -> None:
    """Add how images are drawn."""
    parser.add_argument("--negative-prompt", metavar="TEXT", default="", help="what guidance leads away from")
    parser.add_argument("--steps", metavar="N", type=int, default=50, help="sampler steps (default %(default)s)")
    parser.add_argument("--guidance-scale", metavar="X", type=float, default=9.0, help="default %(default)s")
    parser.add_argument("--sampler", choices=get_args(SamplerName), default="ddim", help="default %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: float32; float16 on cuda")


def drawing_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of `drawing_arguments`, with the device and dtype that this machine has."""
    return {
        "negative_prompt": arguments.negative_prompt,
        "steps": arguments.steps,
        "guidance_scale": arguments.guidance_scale,
        "sampler": arguments.sampler,
        **machine_settings(arguments.device, arguments.dtype),
    }


def machine_settings(device: str | None, dtype: str | None) -> dict[str, Any]:
    """Return device, dtype and threads; None means what this machine has."""
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "device": device,
        "dtype": dtype or ("float16" if device == "cuda" else "float32"),
        "threads": os.cpu_count() or 1,
    }
