"""The names of tensors in a single-file checkpoint: CompVis' layout, which A1111 and ComfyUI read.

    model.diffusion_model.*                     the UNet
    first_stage_model.*                         the VAE
    cond_stage_model.transformer.text_model.*   CLIP's text encoder as in Stable Diffusion 1
    cond_stage_model.model.*                    OpenCLIP's, as in Stable Diffusion 2: query, key and value in one tensor

A multilingual text encoder has no names in this layout. Sources: CompVis `openaimodel.py` and `model.py`, OpenCLIP
`transformer.py`, and diffusers' reader `single_file_utils.py`, against which the tests compare.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
CLIP, OPEN_CLIP = f"{TEXT}transformer.text_model.", f"{TEXT}model."
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP_TOP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_BLOCK = re.compile(r"(?P<side>down|up)_blocks\.(?P<block>\d+)\.(?P<kind>\w+)\.(?P<layer>\d+)\.(?P<rest>.+)")
_MIDDLE = re.compile(r"mid_block\.(?P<kind>resnets|attentions)\.(?P<layer>\d+)\.(?P<rest>.+)")
_QKV = re.compile(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)")
_CLIP_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
VAE_CONVOLUTION = re.compile(rf"{re.escape(VAE)}(?:en|de)coder\.mid\.attn_1\.(?:q|k|v|proj_out)\.weight")
"""Tensors that the layout holds as convolutions [D, D, 1, 1], and diffusers as matrices [D, D]."""

Names = dict[str, tuple[str, ...]]
"""The layout's name of every tensor, with the network's own tensors that it holds, one below another."""


def unet_names(names: Collection[str], layers_per_block: int) -> Names:
    """Return the names of a `UNet2DConditionModel`.

    Raises:
        KeyError: the layout has no name for a tensor.
    """
    attends = {match["block"] for name in names if (match := _BLOCK.fullmatch(name)) and match["kind"] == "attentions"
               and match["side"] == "up"}  # fmt: skip
    return {UNET + _unet_name(name, layers_per_block + 1, attends): (name,) for name in names}


def _unet_name(name: str, rows: int, attends: set[str]) -> str:
    """Return a tensor's name; `rows` is the number of the layout's blocks per block of diffusers."""
    if (match := _MIDDLE.fullmatch(name)) is not None:
        if match["kind"] == "attentions":
            return f"middle_block.{2 * int(match['layer']) + 1}.{match['rest']}"
        return f"middle_block.{2 * int(match['layer'])}.{_renamed(match['rest'], _RESNET)}"
    if (match := _BLOCK.fullmatch(name)) is None:
        return _renamed(name, _UNET_TOP)
    down, kind, rest = match["side"] == "down", match["kind"], match["rest"]
    number = int(match["block"]) * rows + int(match["layer"])
    place = f"input_blocks.{number + 1}" if down else f"output_blocks.{number}"
    if kind == "resnets":
        return f"{place}.0.{_renamed(rest, _RESNET)}"
    if kind == "attentions":
        return f"{place}.1.{rest}"
    last = int(match["block"]) * rows + rows - 1
    part = rest.removeprefix("conv.")
    if kind == "downsamplers":
        return f"input_blocks.{last + 1}.0.op.{part}"
    if kind == "upsamplers":
        return f"output_blocks.{last}.{2 if match['block'] in attends else 1}.conv.{part}"
    raise KeyError(name)


def vae_names(names: Collection[str], blocks: int) -> Names:
    """Return the names of an `AutoencoderKL` with this number of blocks on each side; it raises as `unet_names`."""
    return {VAE + _vae_name(name, blocks): (name,) for name in names}


def _vae_name(name: str, blocks: int) -> str:
    side, _, inner = name.partition(".")
    if side in ("quant_conv", "post_quant_conv"):
        return name
    if side not in ("encoder", "decoder"):
        raise KeyError(name)
    if (match := _MIDDLE.fullmatch(inner)) is not None:
        if match["kind"] == "attentions":
            return f"{side}.mid.attn_1.{_renamed(match['rest'], _VAE_ATTENTION)}"
        return f"{side}.mid.block_{int(match['layer']) + 1}.{_shortcut(match['rest'])}"
    if (match := _BLOCK.fullmatch(inner)) is None:
        return f"{side}.{_renamed(inner, {'conv_in': 'conv_in', 'conv_norm_out': 'norm_out', 'conv_out': 'conv_out'})}"
    block = int(match["block"]) if match["side"] == "down" else blocks - 1 - int(match["block"])
    place = f"{side}.{match['side']}.{block}"
    if match["kind"] == "resnets":
        return f"{place}.block.{match['layer']}.{_shortcut(match['rest'])}"
    return f"{place}.{match['kind'].removesuffix('rs')}.{match['rest']}"  # downsamplers: downsample


def clip_names(names: Collection[str]) -> Names:
    """Return the names of a `CLIPTextModel` as in Stable Diffusion 1."""
    return {CLIP + name.removeprefix("text_model."): (name,) for name in names}


def open_clip_names(names: Collection[str]) -> Names:
    """Return the names of a `CLIPTextModel` as in Stable Diffusion 2; it raises as `unet_names`."""
    found: Names = {}
    for name in names:
        own = name.removeprefix("text_model.")
        if (match := _QKV.fullmatch(own)) is not None:
            layer, part, kind = match.groups()
            if part == "q":
                stem = name.removesuffix(f"q_proj.{kind}")
                found[f"{OPEN_CLIP}transformer.resblocks.{layer}.attn.in_proj_{kind}"] = tuple(
                    f"{stem}{one}_proj.{kind}" for one in "qkv"
                )
        elif (match := _CLIP_LAYER.fullmatch(own)) is not None:
            layer, part, kind = match.groups()
            found[f"{OPEN_CLIP}transformer.resblocks.{layer}.{_OPEN_CLIP_LAYER[part]}.{kind}"] = (name,)
        else:
            found[OPEN_CLIP + _OPEN_CLIP_TOP[own]] = (name,)
    return found


def _renamed(name: str, table: Mapping[str, str]) -> str:
    stem, _, kind = name.rpartition(".")
    return f"{table[stem]}.{kind}"


def _shortcut(name: str) -> str:
    return name.replace("conv_shortcut", "nin_shortcut")
