"""From captions to the UNet's context, for the multilingual encoder and a base model's English one alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from altdiffusion.diffusion.models import check_reads, local_folder
from altdiffusion.diffusion.quiet import quiet_libraries
from altdiffusion.diffusion.weight_files import load_network, open_tokenizer
from altdiffusion.errors import AltDiffusionError


def tokenize(tokenizer: Any, captions: Sequence[str]) -> torch.Tensor:
    """Return token ids, int64 [B, T], truncated and padded to T = `tokenizer.model_max_length`.

    StableDiffusionPipeline does the same.
    """
    ids = tokenizer(
        list(captions),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return torch.as_tensor(ids, dtype=torch.int64)


def check_captions(captions: Sequence[str]) -> None:
    """Refuse captions with the tab that published data puts before a language code (`caption\\tlang`).

    Raises:
        AltDiffusionError: a caption holds a tab; the language code would reach the text encoder.
    """
    leaking = next((caption for caption in captions if "\t" in caption), None)
    if leaking is not None:
        raise AltDiffusionError(
            f"caption {leaking[:80]!r}",
            "holds a tab: a language suffix would reach the text encoder",
            "run select again: it removes such suffixes",
        )


def encode_text(text_encoder: Any, token_ids: torch.Tensor, pad_id: int) -> torch.Tensor:
    """Return the UNet's context.

    The encoder gets the mask `token_ids != pad_id` where its config sets `use_attention_mask`, as in
    StableDiffusionPipeline; a causal CLIP encoder does not need one. The UNet attends to every position, including pads
    (FlagAI `examples/AltDiffusion-m18`), so no position is removed here.

    Args:
        text_encoder: `AltCLIPTextModel` or `CLIPTextModel`.
        token_ids: int64 [B, T].
        pad_id: the tokenizer's pad id.

    Returns:
        [B, T, D] in the encoder's dtype.
    """
    masked = bool(getattr(text_encoder.config, "use_attention_mask", False))
    mask = (token_ids != pad_id).to(torch.int64) if masked else None
    hidden: torch.Tensor = text_encoder(token_ids, attention_mask=mask)[0]
    return hidden


def has_one_pad(text_encoder: Any) -> bool:
    """Return whether all pads behind a caption get the same vector, as XLM-R's do.

    They are masked, so that nothing depends on how many there are, and they share one position
    (`create_position_ids_from_input_ids`), so that nothing distinguishes them.
    """
    config = text_encoder.config
    return config.model_type == "altclip_text_model" and bool(getattr(config, "use_attention_mask", False))


def columns_used(token_ids: torch.Tensor, pad_id: int) -> int:
    """Return how many columns of int [B, T] must be encoded: all captions and one pad, a multiple of 8, T at most."""
    used = (token_ids != pad_id).any(0).nonzero()
    last = int(used[-1]) + 1 if len(used) else 0
    columns: int = min(token_ids.shape[1], -(-(last + 1) // 8) * 8)
    return columns


def load_text_encoder(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Any, Any]:
    """Return (`AltCLIPTextModel` in evaluation mode, tokenizer) from `folder`/text_encoder and `folder`/tokenizer.

    A model folder has the same layout, so it is accepted as well.

    Raises:
        AltDiffusionError: a part is missing or damaged.
    """
    quiet_libraries()
    from transformers import AltCLIPTextModel, XLMRobertaTokenizer

    with local_folder(folder) as local:
        for part, file in (("text_encoder", "config.json"), ("tokenizer", "tokenizer.json")):
            if not (local / part / file).is_file():
                raise AltDiffusionError(
                    f"text encoder folder {folder}",
                    f"holds no {part}/{file}",
                    "give the folder that a conversion wrote",
                )
        encoder = load_network(
            AltCLIPTextModel,
            local / "text_encoder",
            f"text encoder folder {folder}, text_encoder",
            remedy="convert the published encoder first",
            dtype=dtype,
        )
        tokenizer = open_tokenizer(
            XLMRobertaTokenizer,
            local / "tokenizer",
            f"text encoder folder {folder}, tokenizer",
            remedy="convert or export it again",
        )
    check_reads(encoder, tokenizer, f"text encoder folder {folder}")
    return encoder.to(device).eval(), tokenizer


def save_text_encoder(text_encoder: Any, tokenizer: Any, folder: str | Path) -> None:
    """Write a folder that `load_text_encoder` reads, with safetensors only."""
    text_encoder.save_pretrained(Path(folder) / "text_encoder", safe_serialization=True)
    tokenizer.save_pretrained(Path(folder) / "tokenizer")
