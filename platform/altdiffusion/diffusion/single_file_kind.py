"""What kind of checkpoint a single file is, by its keys: most wrong files are named before a tensor is read."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from altdiffusion.diffusion.original_names import CLIP, OPEN_CLIP, TEXT, UNET, VAE
from altdiffusion.diffusion.weight_files import stored_shapes
from altdiffusion.errors import AltDiffusionError

PICKLES = (".ckpt", ".bin", ".pt", ".pth")
_CONTEXT = "transformer_blocks.0.attn2.to_k.weight"
_KINDS = {1024: "Stable Diffusion 2", 768: "Stable Diffusion 1"}
_TRANSFORMERS = tuple(
    f"{prefix}{name}"
    for prefix in ("", UNET)
    for name in ("joint_blocks.", "double_blocks.", "single_blocks.", "transformer_blocks.")
)
_ADAPTERS = (".lora_down.", ".lora_A.", ".lora.down.", ".lora_up.", ".hada_w1_a", ".lokr_w1")
_OTHERS = ("model_ema.", "first_stage_model.model_ema.", "first_stage_model.loss.")
_UNREAD_TEXT = ("position_ids", "logit_scale", "text_projection", "text_projection.weight")


def refuse_pickle(uri: str) -> None:
    """Refuse a single file that is a pickle, by its name.

    Raises:
        AltDiffusionError: it is one.
    """
    if uri.endswith(PICKLES):
        raise AltDiffusionError(
            f"model {uri}",
            "is a pickle, which is never opened as a model: it can run any code",
            "use its .safetensors, or convert it where its publisher is trusted",
        )


def kind_of_file(file: Path, what: str) -> str:
    """Return which Stable Diffusion a single file holds, in words, from its header alone.

    Args:
        what: names the file in errors.

    Raises:
        AltDiffusionError: it is not safetensors or is cut off, or holds something other than Stable Diffusion 1 or 2
            with UNet and VAE.
    """
    shapes = stored_shapes(file, what)
    _refuse_others(shapes.keys(), what)
    width = next((shape[-1] for name, shape in shapes.items() if name.endswith(_CONTEXT)), 0)
    return f"{_KINDS.get(width, 'Stable Diffusion')} (text of width {width})"


def _refuse_others(names: Collection[str], what: str) -> None:
    def holds(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in names)

    problem = remedy = ""
    whole = "give the whole checkpoint, with UNet and VAE"
    if any(part in name for name in names for part in _ADAPTERS):
        problem = "holds adapters (LoRA), not a model"
        remedy = "name it in start.lora of a training or generate.lora of a generation, and a model as the base"
    elif holds("conditioner."):
        problem, remedy = "is a checkpoint of Stable Diffusion XL", "use one of Stable Diffusion 1 or 2"
    elif holds(*_TRANSFORMERS):
        problem = "is of a transformer such as Stable Diffusion 3 or Flux"
        remedy = "use a checkpoint of Stable Diffusion 1 or 2"
    elif holds("down_blocks.", "text_model.", "encoder.down_blocks."):
        problem = "holds one network of a model folder in diffusers' layout"
        remedy = "give the model folder that it is from, the one with model_index.json"
    elif not holds(UNET) and holds(VAE, "encoder.", "decoder."):
        problem, remedy = "holds a VAE and no UNet", whole
    elif not holds(UNET):
        problem = "holds no UNet (no key begins with model.diffusion_model.)"
        remedy = "give a checkpoint in the layout of A1111 and ComfyUI, or a folder in diffusers' layout"
    elif not holds(VAE):
        problem, remedy = "holds a UNet and no VAE (no key begins with first_stage_model.)", whole
    if problem:
        raise AltDiffusionError(what, problem, remedy)


def left_over(names: Collection[str], used: Collection[str], layers: int) -> list[str]:
    """Return the keys of a file that no network of it uses and that are not known to serve another purpose.

    Such purposes are averages and buffers of the training, and the parts of CLIP that the UNet does not read.

    Args:
        layers: number of layers of the text encoder that is used.
    """
    unread_layers = f"{OPEN_CLIP}transformer.resblocks.{layers}.", f"{CLIP}encoder.layers.{layers}."
    known = (*_OTHERS, *unread_layers)
    return sorted(
        name
        for name in set(names) - set(used)
        if "." in name and not name.startswith(known) and not (name.startswith(TEXT) and name.endswith(_UNREAD_TEXT))
    )


def clip_prefix(names: Collection[str]) -> str | None:
    """Return the prefix of CLIP's text encoder in a file; None where the file holds none."""
    return next((prefix for prefix in (CLIP, OPEN_CLIP) if any(name.startswith(prefix) for name in names)), None)
