"""Single-file checkpoints in the layout of A1111 and ComfyUI (diffusion.original_names): written, and read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from altdiffusion.diffusion.models import ModelBundle
from altdiffusion.diffusion.original_names import (
    VAE_CONVOLUTION,
    Names,
    clip_names,
    open_clip_names,
    unet_names,
    vae_names,
)
from altdiffusion.errors import AltDiffusionError


def has_original_names(text_encoder: Any) -> bool:
    """Return whether a text encoder can be stated in the layout: CLIP's can, a multilingual one cannot."""
    return type(text_encoder).__name__ == "CLIPTextModel"


def networks_of(bundle: ModelBundle) -> list[Any]:
    """Return the networks that a single file holds."""
    return [bundle.unet, bundle.vae, *([bundle.text_encoder] if has_original_names(bundle.text_encoder) else [])]


def names_of(network: Any, unet: Any, what: str) -> Names:
    """Return the layout's names of a network's tensors.

    Args:
        unet: the UNet of the same model, which decides between CLIP's names and OpenCLIP's.
        what: names the model in errors.

    Raises:
        AltDiffusionError: the network has a tensor for which the layout has no name.
    """
    own = [name for name in network.state_dict() if not name.endswith(".position_ids")]
    kind = type(network).__name__
    try:
        if kind == "UNet2DConditionModel":
            return unet_names(own, int(network.config.layers_per_block))
        if kind == "AutoencoderKL":
            return vae_names(own, len(network.config.block_out_channels))
        return open_clip_names(own) if unet.config.use_linear_projection else clip_names(own)
    except KeyError as error:
        raise AltDiffusionError(
            what,
            f"has the tensor {error.args[0]} in its {kind}, for which the single-file layout has no name",
            "use --format diffusers",
        ) from error


def single_file_tensors(bundle: ModelBundle, what: str) -> dict[str, Tensor]:
    """Return the tensors of a single file: UNet, VAE and, if it is CLIP's, the text encoder.

    Raises:
        AltDiffusionError: as `names_of`.
    """
    found = {}
    for network in networks_of(bundle):
        state = network.state_dict()
        for name, parts in names_of(network, bundle.unet, what).items():
            tensor = torch.cat([state[part] for part in parts]) if len(parts) > 1 else state[parts[0]]
            found[name] = tensor[:, :, None, None] if VAE_CONVOLUTION.fullmatch(name) else tensor
    return {name: tensor.contiguous() for name, tensor in sorted(found.items())}


def network_state(network: Any, unet: Any, tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Return the state of a network from the tensors of a single file.

    Args:
        network: of the right shape; its weights are not read, so it may be on "meta".
        unet: the UNet of the same model.
        what: names the file in errors.

    Raises:
        AltDiffusionError: a tensor is missing or has another shape; the error names its key in the file.
    """
    wanted: dict[str, Tensor] = network.state_dict()
    state: dict[str, Tensor] = {}
    for name, parts in names_of(network, unet, what).items():
        if name not in tensors:
            raise AltDiffusionError(what, f"lacks the key {name}", "give the whole checkpoint, or copy it again")
        tensor = tensors[name]
        if VAE_CONVOLUTION.fullmatch(name) and tensor.dim() > 2:
            tensor = tensor.flatten(1)
        rows = sum(wanted[part].shape[0] for part in parts)
        shape = (rows, *wanted[parts[0]].shape[1:])
        if tuple(tensor.shape) != shape:
            raise AltDiffusionError(
                f"{what}, key {name}",
                f"has the shape {list(tensors[name].shape)}, and the folder of configs requires {list(shape)}",
                "give the configs of the model that the file was trained from",
            )
        state |= dict(zip(parts, tensor.chunk(len(parts)), strict=True))
    return state
