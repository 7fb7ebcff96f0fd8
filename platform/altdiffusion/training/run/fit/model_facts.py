"""What the configs of a model folder's parts state, read without loading a network."""

from __future__ import annotations

from typing import Any

from altdiffusion.diffusion import models
from altdiffusion.diffusion.models import local_folder, read_index, text_positions
from altdiffusion.diffusion.parts_fit import refuse_other_conditions, refuse_shift
from altdiffusion.diffusion.scheduler import class_defaults
from altdiffusion.diffusion.weight_files import open_tokenizer
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from altdiffusion.training.run.fit.facts import Facts


def state_unet(base: str, facts: Facts) -> int:
    """State a UNet's facts; return how often it halves a latent's sides."""
    from diffusers import UNet2DConditionModel

    config = _config(base, "unet", UNet2DConditionModel)
    place = f"model folder {base}, file unet/config.json"
    refuse_other_conditions(config, place)
    for name in ("in_channels", "out_channels"):
        facts.state("latent channels", config[name], f"{place}, {name}", "use UNet, VAE and latents of one model")
    width = config["cross_attention_dim"]
    facts.state(
        "width of the text vectors", width, f"{place}, cross_attention_dim", "use the encoder that belongs to this base"
    )
    return len(config["block_out_channels"]) - 1


def state_vae(base: str, facts: Facts) -> int:
    """State a VAE's facts; return the pixels of an image's side per pixel of the latent's."""
    from diffusers import AutoencoderKL

    config = _config(base, "vae", AutoencoderKL)
    place, remedy = f"model folder {base}, file vae/config.json", "use UNet, VAE and latents of one model"
    facts.state("latent channels", config["latent_channels"], f"{place}, latent_channels", remedy)
    facts.state("scaling of latents", float(config["scaling_factor"]), f"{place}, scaling_factor", remedy)
    refuse_shift(config, place)
    return int(2 ** (len(config["block_out_channels"]) - 1))


def text_shape(folder: str) -> tuple[int, int] | None:
    """Return (width, token positions) of a stock text encoder; None where it is of a form that is converted first."""
    from transformers import AltCLIPTextConfig, CLIPTextConfig

    raw = _json(folder, "text_encoder/config.json")
    if raw.get("model_type") == "altclip_text_model":
        config = AltCLIPTextConfig(**raw)
        return int(config.project_dim), text_positions(config)
    if raw.get("model_type") == "clip_text_model":
        plain = CLIPTextConfig(**raw)
        return int(plain.hidden_size), text_positions(plain)
    return None


def load_tokenizer(folder: str, *, own: bool) -> Any:
    """Return the tokenizer of a base, of the class that its index names, or (`own`) of a text encoder's folder."""
    from transformers import XLMRobertaTokenizer

    with local_folder(folder) as local:
        if own:
            place = f"folder {folder}, tokenizer"
            return open_tokenizer(XLMRobertaTokenizer, local / "tokenizer", place, remedy="convert or export it again")
        return models.load_tokenizer(local, read_index(local, folder), f"model folder {folder}")


def _config(base: str, part: str, kind: Any) -> dict[str, Any]:
    """Return config.json of a network, its class's defaults filled in."""
    return class_defaults(kind) | _json(base, f"{part}/config.json")


def _json(folder: str, name: str) -> dict[str, Any]:
    uri = files.join(folder, *name.split("/"))
    try:
        found = files.read_json(uri)
    except FileNotFoundError as error:
        raise AltDiffusionError(
            f"model folder {folder}", f"holds no {name}", "give the folder of an export or of a base model"
        ) from error
    if not isinstance(found, dict):
        raise AltDiffusionError(f"model folder {folder}, file {name}", "is not a mapping", "copy it as published")
    return found
