"""The contexts of texts: what the text encoder gives the UNet, computed once per distinct text.

Shapes: n texts, B rows of a batch, T text positions, D context width. T grows with the windows in which a text is read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from altdiffusion.diffusion.models import ModelBundle
from altdiffusion.generation.prompt_windows import PromptWindows
from altdiffusion.generation.truncation import Reading


class Contexts:
    """The contexts of some texts.

    A text is always encoded among B texts, because a batch of another size may round differently.

    Args:
        bundle: the model, on its device and in its dtype.
        batch_rows: B.
        prompt_windows: windows in which a text is read at most.
    """

    def __init__(self, bundle: ModelBundle, batch_rows: int, prompt_windows: int = 1) -> None:
        self._bundle = bundle
        self._batch_rows = batch_rows
        self.windows = PromptWindows(bundle.tokenizer, bundle.text_encoder, prompt_windows)
        self._contexts: dict[tuple[str, int], Tensor] = {}

    def encode(self, texts: Sequence[tuple[str, int]]) -> None:
        """Encode the distinct ones of some texts, each with its number of windows, in place of earlier ones."""
        self._contexts = {}
        for windows in sorted({number for _, number in texts}):
            distinct = list(dict.fromkeys(text for text, number in texts if number == windows))
            for start in range(0, len(distinct), self._batch_rows):
                some = distinct[start : start + self._batch_rows]
                filled = [*some, *[""] * (self._batch_rows - len(some))]
                for text, context in zip(some, self._encode(filled, windows), strict=False):
                    self._contexts[text, windows] = context

    def of(self, texts: Sequence[str], windows: int = 1) -> Tensor:
        """Return the context [n, T, D] of n texts that are encoded with as many windows, in the UNet's dtype."""
        return torch.stack([self._contexts[text, windows] for text in texts])

    def shape(self, windows: int = 1) -> tuple[int, ...]:
        """Return the shape of one text's context, (T, D)."""
        return self.windows.positions(windows), int(next(iter(self._contexts.values())).shape[1])

    def read(self, texts: Sequence[str]) -> Reading:
        """Return how long each text is, and whether the encoder reads only a part of it."""
        return self.windows.read(texts)

    def _encode(self, texts: Sequence[str], windows: int) -> Tensor:
        """Return the context [B, T, D] of B texts."""
        unet = next(self._bundle.unet.parameters())
        with torch.inference_mode():
            return self.windows.encode(texts, windows, unet.device).to(unet.dtype)
