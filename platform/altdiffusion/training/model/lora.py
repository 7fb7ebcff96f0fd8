"""Low-rank adapters on the UNet (Hu et al. 2021, "LoRA", arXiv 2106.09685).

A linear layer W [out, in] becomes W + alpha / r B A with A [r, in] and B [out, r]; W stays as it is. A begins uniform
in +-1 / sqrt(in), drawn from the run's seed, B with zeros: before the first update nothing has changed. In training
peft computes it, as in diffusers; fusing and writing the adapters take no more than the formula.

A checkpoint holds the adapters alone, in `lora.safetensors`, named `<layer>.lora_A.weight` and `<layer>.lora_B.weight`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from altdiffusion.diffusion.models import Trains, trainable_parameters
from altdiffusion.diffusion.weight_files import check_keys
from altdiffusion.errors import AltDiffusionError
from altdiffusion.training.config.lora import LoraConfig

STOCK_FILE = "pytorch_lora_weights.safetensors"
"""What `pipeline.load_lora_weights` looks for."""
_NAME = "default"
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


def target_layers(unet: Any, config: LoraConfig, trainable: Trains) -> list[str]:
    """Return the names of the linear layers that get an adapter, in the UNet's own order.

    Raises:
        AltDiffusionError: there is none.
    """
    chosen = {name for name, _ in trainable_parameters(unet, trainable)}
    found = [
        name
        for name, layer in unet.named_modules()
        if isinstance(layer, nn.Linear)
        and f"{name}.weight" in chosen
        and any(f".{name}".endswith(f".{target}") for target in config.targets)
    ]
    if not found:
        raise AltDiffusionError(
            f"lora.targets {', '.join(config.targets)} with trainable: {trainable}",
            "name no linear layer of the UNet",
            "use to_q, to_k, to_v, to_out.0, or trainable: all",
        )
    return found


def require_peft() -> Any:
    """Return the package peft.

    Raises:
        AltDiffusionError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise AltDiffusionError(
            "lora", "needs the package peft", "install it: pip install 'altdiffusion-platform[lora]'"
        ) from error
    return peft


def add_adapters(unet: Any, config: LoraConfig, trainable: Trains, seed: int) -> None:
    """Put fresh adapters into a UNet and freeze all else.

    Raises:
        AltDiffusionError: peft is not installed.
    """
    peft = require_peft()
    unet.add_adapter(
        peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.scale * config.rank,
            target_modules=target_layers(unet, config, trainable),
        ),
        adapter_name=_NAME,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapters(unet):
            if name.endswith(_UP):
                parameter.zero_()
            else:
                bound = 1 / math.sqrt(parameter.shape[1])
                parameter.copy_(torch.rand(parameter.shape, generator=generator).mul_(2 * bound).sub_(bound))


def adapters(unet: Any) -> list[tuple[str, nn.Parameter]]:
    """Return the adapters of a UNet by their names in a checkpoint; set `requires_grad` of all the UNet's
    parameters."""
    found: list[tuple[str, nn.Parameter]] = []
    for name, parameter in unet.named_parameters():
        adapter = f".lora_A.{_NAME}." in name or f".lora_B.{_NAME}." in name
        parameter.requires_grad_(adapter)
        if adapter:
            found.append((name.replace(f".{_NAME}.", "."), parameter))
    return found


def load_adapters(unet: Any, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load a checkpoint's adapters into a UNet that has adapters.

    Raises:
        AltDiffusionError: they belong to other layers or have another rank.
    """
    own = dict(adapters(unet))
    wrong = sorted(own.keys() ^ tensors.keys()) or [name for name in own if own[name].shape != tensors[name].shape]
    if wrong:
        raise AltDiffusionError(
            what,
            f"does not hold this run's adapters: {len(wrong)} differ, like {wrong[0]}",
            "use the run's own checkpoint, or another run name",
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def fuse(unet: nn.Module, tensors: Mapping[str, Tensor], config: LoraConfig) -> None:
    """Add alpha / r B A to W, in place, for every layer that has an adapter; in float32 on the CPU.

    Raises:
        AltDiffusionError: the UNet lacks such a layer, or one has another shape.
    """
    weights = dict(unet.named_parameters())
    with torch.no_grad():
        for layer, down, up in _pairs(tensors):
            weight = weights.get(f"{layer}.weight")
            if weight is None or weight.shape != (up.shape[0], down.shape[1]):
                raise AltDiffusionError(
                    f"adapter of {layer}", "does not fit this UNet", "use the base that it was trained on"
                )
            weight.add_(up.float() @ down.float(), alpha=config.scale)


def write_stock_file(folder: Path, tensors: Mapping[str, Tensor], config: LoraConfig) -> None:
    """Write the adapters as `pipeline.load_lora_weights(folder)` reads them: names below `unet.`, and rank and alpha
    in the file's own metadata."""
    from safetensors.torch import save_file

    layers = [layer for layer, _, _ in _pairs(tensors)]
    settings = {"unet.r": config.rank, "unet.lora_alpha": config.scale * config.rank, "unet.target_modules": layers}
    named = {f"unet.{name}": tensor.contiguous() for name, tensor in sorted(tensors.items())}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(settings, sort_keys=True)}
    save_file(named, folder / STOCK_FILE, metadata)


def write_kohya_file(path: Path, tensors: Mapping[str, Tensor], config: LoraConfig) -> None:
    """Write the adapters as kohya's sd-scripts do and A1111 and ComfyUI read them: `lora_unet_<layer>` with `_` for
    each `.`, then `.lora_down.weight` (A), `.lora_up.weight` (B) and `.alpha`."""
    from safetensors.torch import save_file

    alpha, named = config.scale * config.rank, {}
    for layer, down, up in _pairs(tensors):
        stem = f"lora_unet_{layer.replace('.', '_')}"
        named[f"{stem}.lora_down.weight"], named[f"{stem}.lora_up.weight"] = down.contiguous(), up.contiguous()
        named[f"{stem}.alpha"] = torch.tensor(alpha, dtype=down.dtype)
    metadata = {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.rank),
        "ss_network_alpha": str(alpha),
    }
    save_file(dict(sorted(named.items())), path, metadata)


def _pairs(tensors: Mapping[str, Tensor]) -> Iterable[tuple[str, Tensor, Tensor]]:
    """Yield (layer, A, B) of every adapter.

    Raises:
        AltDiffusionError: an A or a B has no counterpart, or there is another tensor.
    """
    layers = {name.removesuffix(_DOWN).removesuffix(_UP) for name in tensors}
    wanted = {layer + part for layer in layers for part in (_DOWN, _UP)}
    check_keys(wanted - tensors.keys(), tensors.keys() - wanted, "adapters", "use a checkpoint as it was written")
    for name in tensors:
        if name.endswith(_DOWN):
            layer = name.removesuffix(_DOWN)
            yield layer, tensors[name], tensors[layer + _UP]
