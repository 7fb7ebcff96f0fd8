"""How a model card states the use of the formats other than a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from altdiffusion.training.exports.formats import file_stem


def is_of_adapters(lineage: Mapping[str, Any]) -> bool:
    """Return whether an export holds adapters alone."""
    return str(lineage.get("format", "")).startswith("lora-")


def single_file_use(lineage: Mapping[str, Any]) -> str:
    """Return the section of a single file: its line in diffusers, and what A1111 and ComfyUI find in it."""
    name = f"{file_stem(lineage)}.safetensors"
    return (
        "## Use\n\n```python\nfrom diffusers import StableDiffusionPipeline\n"
        "from transformers import AltCLIPTextModel\n\n"
        'folder = "this/folder"\nencoder = AltCLIPTextModel.from_pretrained(f"{folder}/text_encoder")\n'
        "pipeline = StableDiffusionPipeline.from_single_file(\n"
        f'    f"{{folder}}/{name}", config=folder, text_encoder=encoder\n)\n'
        'image = pipeline("a prompt").images[0]\n```\n\n'
        f"`{name}` holds the UNet and the VAE in the layout of A1111 and ComfyUI. A multilingual text encoder has no "
        "names in that layout: it is in `text_encoder/`, with its `tokenizer/`. Where there are no weights in "
        "`text_encoder/`, the encoder is CLIP's and is in the file; leave `text_encoder=encoder` out. A program that "
        "reads the file alone has no multilingual encoder for it; do not put CLIP in its place, because the UNet was "
        "trained behind another encoder."
    )


def adapters_use(lineage: Mapping[str, Any], start: str) -> str:
    """Return the section of adapters.

    Args:
        start: what they were trained on, in words.
    """
    if lineage["format"] == "lora-kohya":
        argument = f'"this/folder", weight_name="{file_stem(lineage)}.safetensors"'
        note = "\n\nA1111 and ComfyUI read the file as any LoRA of kohya's sd-scripts; put it into their LoRA folder."
    else:
        argument, note = '"this/folder"', ""
    return (
        f"## Use\n\nThe adapters belong to what the run started from: {start}.\n\n```python\n"
        "from diffusers import DiffusionPipeline\n\n"
        'pipeline = DiffusionPipeline.from_pretrained("what/the/run/started/from")\n'
        f'pipeline.load_lora_weights({argument})\nimage = pipeline("a prompt").images[0]\n```{note}'
    )
