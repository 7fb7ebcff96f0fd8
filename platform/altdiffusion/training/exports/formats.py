"""The formats of an export: which files a folder holds, and how they are written.

| format | files |
|---|---|
| `diffusers` | a model folder; the adapters of a run of adapters are fused into its UNet, and next to it |
| `single-file` | one safetensors in the layout of A1111 and ComfyUI, and the other parts of a model folder |
| `lora-diffusers` | the adapters alone, in peft's layout, for `load_lora_weights` |
| `lora-kohya` | the adapters alone, in kohya's layout, as A1111 and ComfyUI read them |

Next to a single file are configs, tokenizer, scheduler and, because the layout has no names for it, a multilingual
text encoder: `StableDiffusionPipeline.from_single_file(file, config=folder, text_encoder=...)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from altdiffusion.diffusion.models import ModelBundle, save_bundle, save_configs
from altdiffusion.diffusion.single_file import has_original_names, single_file_tensors
from altdiffusion.diffusion.weight_files import check_finite
from altdiffusion.errors import AltDiffusionError
from altdiffusion.training.config import LoraConfig
from altdiffusion.training.model.lora import write_kohya_file, write_stock_file

Format = Literal["diffusers", "single-file", "lora-diffusers", "lora-kohya"]
FORMATS: tuple[Format, ...] = ("diffusers", "single-file", "lora-diffusers", "lora-kohya")
Precision = Literal["fp32", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What an export looks like: its weights, its format and the type of its tensors."""

    weights: Literal["ema", "raw"] = "ema"
    format: Format = "diffusers"
    dtype: Precision = "fp32"

    @property
    def suffix(self) -> str:
        """Return what follows `step-N` in the name of the folder; nothing for what a job exports by itself."""
        parts = [(self.weights, "ema"), (self.format, "diffusers"), (self.dtype, "fp32")]
        return "".join(f"-{value}" for value, usual in parts if value != usual)

    @property
    def lineage(self) -> dict[str, str]:
        """Return what lineage.json records of it. What a job exports by itself names its weights only."""
        found = {"weights": str(self.weights)}
        if self.format != "diffusers":
            found["format"] = self.format
        if self.dtype != "fp32":
            found["dtype"] = self.dtype
        return found

    @property
    def adapters_alone(self) -> bool:
        """Return whether the export holds nothing but adapters."""
        return self.format in ("lora-diffusers", "lora-kohya")


def refuse_without_adapters(shape: Shape, run: str, settings: Mapping[str, object] | None) -> None:
    """Refuse a format of adapters for a run that trained whole weights.

    Raises:
        AltDiffusionError: names the run and the formats that it can be exported in.
    """
    if shape.adapters_alone and settings is None:
        raise AltDiffusionError(
            f"run {run}, format {shape.format}",
            "asks for adapters, and the run has none: it trained whole weights (no `lora` in its config)",
            "use --format diffusers or single-file, or train with `lora: {rank: 16}` under another run name",
        )


def file_stem(lineage: Mapping[str, Any]) -> str:
    """Return the name of an export's one file without its ending, as a folder of A1111 or ComfyUI would list it."""
    return f"{lineage['run']}-step-{int(lineage['step']):08d}"


def write_adapters(
    folder: Path, tensors: Mapping[str, Tensor], config: LoraConfig, shape: Shape, stem: str, what: str
) -> None:
    """Write the adapters of a checkpoint alone.

    Args:
        stem: name of kohya's file, without its ending.
        what: names the checkpoint in errors.

    Raises:
        AltDiffusionError: a value is not finite in the dtype.
    """
    cast = _cast(tensors, shape.dtype, what)
    if shape.format == "lora-kohya":
        write_kohya_file(folder / f"{stem}.safetensors", cast, config)
    else:
        write_stock_file(folder, cast, config)


def write_model(folder: Path, bundle: ModelBundle, shape: Shape, stem: str, what: str) -> None:
    """Write a whole model; its networks are set to the dtype in place.

    Args:
        stem: name of a single file, without its ending.
        what: names the checkpoint in errors.

    Raises:
        AltDiffusionError: a value is not finite in the dtype, or a tensor has no name in the single-file layout.
    """
    if shape.dtype != "fp32":
        for network in (bundle.unet, bundle.vae, bundle.text_encoder):
            _cast(network.state_dict(), shape.dtype, what)
            network.to(_DTYPES[shape.dtype])
    if shape.format == "diffusers":
        save_bundle(bundle, folder)
        return
    from safetensors.torch import save_file

    save_configs(bundle, folder)
    if not has_original_names(bundle.text_encoder):
        bundle.text_encoder.save_pretrained(str(folder / "text_encoder"), safe_serialization=True)
    save_file(single_file_tensors(bundle, what), folder / f"{stem}.safetensors", {"format": "pt"})


def _cast(tensors: Mapping[str, Tensor], dtype: Precision, what: str) -> dict[str, Tensor]:
    """Return tensors in the dtype of an export; those that are not of numbers with a fraction stay."""
    kind = _DTYPES[dtype]
    cast = {name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    check_finite(cast, what, "export it with --dtype fp32")
    return cast
