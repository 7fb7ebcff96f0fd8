"""The contexts of texts: what the text encoder gives the UNet, computed once per distinct text.

Shapes: n texts, B rows of a batch, T text positions, D context width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from altdiffusion.diffusion.models import ModelBundle
from altdiffusion.diffusion.text_encoder import encode_text, tokenize


class Contexts:
    """The contexts of some texts.

    A text is always encoded among B texts, because a batch of another size may round differently.

    Args:
        bundle: the model, on its device and in its dtype.
        batch_rows: B.
    """

    def __init__(self, bundle: ModelBundle, batch_rows: int) -> None:
        self._bundle = bundle
        self._batch_rows = batch_rows
        self._contexts: dict[str, Tensor] = {}

    def encode(self, texts: Sequence[str]) -> None:
        """Encode the distinct ones of some texts, in place of those that were encoded before."""
        self._contexts = {}
        distinct = list(dict.fromkeys(texts))
        for start in range(0, len(distinct), self._batch_rows):
            some = distinct[start : start + self._batch_rows]
            filled = [*some, *[""] * (self._batch_rows - len(some))]
            self._contexts |= dict(zip(some, self._encode(filled), strict=False))

    def of(self, texts: Sequence[str]) -> Tensor:
        """Return the context [n, T, D] of n texts that are encoded, in the UNet's dtype."""
        return torch.stack([self._contexts[text] for text in texts])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one text's context, (T, D)."""
        return tuple(next(iter(self._contexts.values())).shape)

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Return the length of each text in tokens, start and end included, before anything is cut off."""
        if not texts:
            return []
        ids = self._bundle.tokenizer(list(texts), truncation=False, padding=False, verbose=False).input_ids
        return [len(one) for one in ids]

    @property
    def max_tokens(self) -> int:
        """T, the number of tokens that the text encoder reads."""
        return int(self._bundle.tokenizer.model_max_length)

    def _encode(self, texts: Sequence[str]) -> Tensor:
        """Return the context [B, T, D] of B texts."""
        bundle = self._bundle
        unet = next(bundle.unet.parameters())
        ids = tokenize(bundle.tokenizer, texts).to(unet.device)
        with torch.inference_mode():
            return encode_text(bundle.text_encoder, ids, bundle.tokenizer.pad_token_id).to(unet.dtype)
