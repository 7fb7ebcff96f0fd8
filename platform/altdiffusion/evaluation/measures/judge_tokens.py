"""The folder of a judge and its tokenizer: what can be checked before its weights are loaded.

Shapes: B texts, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from altdiffusion.diffusion.pinned_files import check_folder
from altdiffusion.diffusion.quiet import quiet_libraries
from altdiffusion.diffusion.weight_files import open_tokenizer, read_settings
from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.measures.settings import JudgeConfig

REMEDY = "give the folder of a CLIPModel or AltCLIPModel with its tokenizer, as save_pretrained writes it"
KINDS = ("clip", "altclip")
_POSITIONS = {"clip": 77, "altclip": 514}
"""Token positions where config.json leaves them out, as transformers' defaults are."""


class JudgeTokens:
    """An opened folder: what kind of model it holds, and its tokenizer."""

    def __init__(self, config: JudgeConfig) -> None:
        """Open the tokenizer.

        Raises:
            AltDiffusionError: another folder than pinned, another kind of model, or fewer token positions than
                configured.
        """
        from transformers import AutoTokenizer

        quiet_libraries()
        self.folder = Path(check_folder(config.folder, config.digest))
        self.what = f"judge {config.folder}"
        settings = read_settings(self.folder / "config.json", self.what)
        self.kind = str(settings.get("model_type"))
        if self.kind not in KINDS:
            raise AltDiffusionError(self.what, f"is a model of type {self.kind}, not {' or '.join(KINDS)}", REMEDY)
        text = settings.get("text_config") or {}
        positions = int(text.get("max_position_embeddings", _POSITIONS[self.kind]))
        if config.text_tokens > positions:
            raise AltDiffusionError(
                self.what,
                f"has {positions} token positions, and text_tokens is {config.text_tokens}",
                "lower text_tokens",
            )
        self._tokenizer: Any = open_tokenizer(AutoTokenizer, self.folder, self.what, remedy=REMEDY)
        self._length = config.text_tokens

    def __call__(self, texts: Sequence[str]) -> dict[str, Any]:
        """Return token ids and mask, [B, L] each, where L is `text_tokens` whatever the texts."""
        made = self._tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self._length, return_tensors="pt"
        )
        return {name: made[name] for name in ("input_ids", "attention_mask")}

    def unread(self, texts: Sequence[str]) -> list[int]:
        """Return the places of texts that hold a word that the tokenizer does not know.

        A tokenizer of bytes, such as CLIP's, knows every word.
        """
        unknown = self._tokenizer.unk_token_id
        if unknown is None or unknown == self._tokenizer.eos_token_id or not texts:
            return []
        return [int(place) for place in (self(texts)["input_ids"] == unknown).any(dim=1).nonzero()[:, 0]]
