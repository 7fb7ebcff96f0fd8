"""The English text tower that a student learns from, frozen.

The published teacher is OpenCLIP ViT-H-14 `laion2b_s32b_b79k`, in transformers a `CLIPTextModelWithProjection`. Its
vector of a caption is pooled, `final_layer_norm(hidden[-1])` at the first EOS (from which the released distillation
learns), or projected, `text_projection` of the pooled one. Neither is normalised. The encoder inside a base model has
no projection; its vector is the pooled one. The EOS position is searched here, since `CLIPTextModel` takes the largest
id for the EOS where a config sets it to 2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from altdiffusion.diffusion.models import local_folder
from altdiffusion.diffusion.quiet import quiet_libraries
from altdiffusion.diffusion.weight_files import load_network
from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.storage.documents import read_document


def eos_vectors(hidden: Tensor, token_ids: Tensor, eos_id: int) -> Tensor:
    """Return the vectors [B, D] of hidden states [B, T, D] at the first EOS of token ids, int64 [B, T]."""
    first = (token_ids == eos_id).to(torch.int64).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), first]


def sentence_vectors(encoder: Any, context: Tensor, token_ids: Tensor, eos_id: int) -> Tensor:
    """Return the vectors [B, D] that a base's own encoder has for whole texts.

    CLIP's encoder is causal: its vector at EOS has read the text. A multilingual encoder of an earlier distillation
    (`AltCLIPTextModel`) reads both ways, and its CLS vector is the one that was distilled.

    Args:
        context: its output [B, T, D] for token ids [B, T].
    """
    if getattr(encoder.config, "use_attention_mask", False):
        return context[:, 0]
    return eos_vectors(context, token_ids, eos_id)


def feature_width(folder: str | Path, output: Literal["pooled", "projected"]) -> int:
    """Return the width F of a tower's vectors from its config alone.

    Raises:
        AltDiffusionError: there is no config.
    """
    with local_folder(folder) as local:
        config = _config(_root(local), folder)
    return int(config.projection_dim if output == "projected" else config.hidden_size)


def load_tower(folder: str | Path) -> Any:
    """Return a frozen `CLIPTextModelWithProjection` in evaluation mode from a folder of transformers.

    Only safetensors are read. They are in the folder itself or in its `text_encoder`. A whole CLIP is accepted as well.

    Raises:
        AltDiffusionError: a part is missing or damaged, or there is no projection.
    """
    quiet_libraries()
    from transformers import CLIPTextModelWithProjection

    with local_folder(folder) as local:
        root = _root(local)
        config = _config(root, folder)
        model = load_network(
            CLIPTextModelWithProjection,
            root,
            f"teacher {folder}",
            remedy="give a CLIP of transformers; to learn from the base's own encoder leave distillation.teacher out",
            unused=("vision_model.", "visual_projection.", "logit_scale"),  # the other parts of a whole CLIP
            config=config,
            dtype=torch.float32,
        )
    return model.eval().requires_grad_(False)


def _root(local: Path) -> Path:
    return local / "text_encoder" if (local / "text_encoder").is_dir() else local


def _config(root: Path, folder: str | Path) -> Any:
    """Return the tower's `CLIPTextConfig`; in a whole CLIP's config it is one level down, except for the projection."""
    from transformers import CLIPTextConfig

    try:
        whole = read_document(str(root / "config.json")).value
        width = {"projection_dim": whole["projection_dim"]} if "projection_dim" in whole else {}
        return CLIPTextConfig(**{**(whole.get("text_config") or whole), **width})
    except (OSError, ValueError, TypeError) as error:
        raise AltDiffusionError(
            f"teacher {folder}", f"has no readable config.json ({first_line(error)})", "give the folder of a CLIP"
        ) from error
