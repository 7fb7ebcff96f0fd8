"""Whether the parts of a model folder belong together, read from their configs without loading a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from altdiffusion.errors import AltDiffusionError

OTHER_CONDITIONS = (
    "class_embed_type",
    "num_class_embeds",
    "addition_embed_type",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
)
"""Settings of UNets that need more than a noised latent, a timestep and a text (SDXL, upscalers, distilled ones)."""
_REMEDY = "use UNet, VAE and text encoder of one model"


@dataclass(frozen=True, kw_only=True)
class PartConfigs:
    """The configs of three networks, with the defaults of their classes."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]


def check_fit(parts: PartConfigs, what: str) -> None:
    """Refuse networks that cannot draw together.

    Args:
        what: names the folder in errors.

    Raises:
        AltDiffusionError: the UNet needs other inputs than a latent, a timestep and a text, or the parts disagree
            about the latents or the width of the text; the error states both values.
    """
    unet, vae = parts.unet, parts.vae
    refuse_other_conditions(unet, f"{what}, file unet/config.json")
    refuse_shift(vae, f"{what}, file vae/config.json")
    for name in ("in_channels", "out_channels"):
        if unet[name] != vae["latent_channels"]:
            raise AltDiffusionError(
                f"{what}, file unet/config.json, {name}",
                f"is {unet[name]}, but latent_channels in vae/config.json is {vae['latent_channels']}",
                _REMEDY + "; models of inpainting, editing and upscaling are not supported",
            )
    width = text_width_of(parts.text_encoder)
    if unet["cross_attention_dim"] != width:
        raise AltDiffusionError(
            f"{what}, file unet/config.json, cross_attention_dim",
            f"is {unet['cross_attention_dim']}, but the text encoder gives vectors of width {width}",
            _REMEDY,
        )


def refuse_other_conditions(unet: Mapping[str, Any], place: str) -> None:
    """Refuse the config of a UNet that needs more than a noised latent, a timestep and a text."""
    asked = [name for name in OTHER_CONDITIONS if unet.get(name) is not None]
    if asked:
        raise AltDiffusionError(
            place,
            f"sets {', '.join(asked)}: this UNet needs more than a latent, a timestep and a text",
            "use a base of Stable Diffusion 1's or 2's kind",
        )


def refuse_shift(vae: Mapping[str, Any], place: str) -> None:
    """Refuse the config of a VAE whose latents are shifted."""
    if vae.get("shift_factor"):
        raise AltDiffusionError(
            f"{place}, shift_factor",
            f"is {vae['shift_factor']:g}: stock StableDiffusionPipeline does not add it back, so it could not draw "
            "with what is trained",
            "use a base whose VAE has no shift",
        )


def text_width_of(text_encoder: Mapping[str, Any]) -> int:
    """Return the width of the vectors that a stock text encoder gives the UNet, from its config."""
    return int(text_encoder["project_dim" if "project_dim" in text_encoder else "hidden_size"])
