"""Prompts that are longer than the T tokens a UNet was trained with, read in up to n windows of T tokens.

An encoder with more than T positions (XLM-R has 512) reads such a text as one sequence of n T tokens, or of all its
positions. An encoder with T positions (CLIP's 77) reads it in windows, each with its own start and end, cut between
words, and their contexts follow each other. Either way the UNet attends to a context of more than T positions, which
it never saw in training: a text of T tokens or fewer is always read as without this setting.

Shapes: N texts, B of a batch, T tokens per window, w windows of a text, S = positions of its context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from altdiffusion.diffusion.models import text_positions
from altdiffusion.diffusion.text_encoder import encode_text, tokenize
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.truncation import Reading, read_by, text_from


class PromptWindows:
    """How a tokenizer and an encoder read texts in up to n windows.

    Args:
        tokenizer: its `model_max_length` is T.
        text_encoder: `AltCLIPTextModel` or `CLIPTextModel`.
        most: n.

    Raises:
        AltDiffusionError: the last window would be past the encoder's positions.
    """

    def __init__(self, tokenizer: Any, text_encoder: Any, most: int = 1) -> None:
        self._tokenizer, self._encoder, self._most = tokenizer, text_encoder, most
        self._length = int(tokenizer.model_max_length)
        self.encoder_positions = text_positions(text_encoder.config)
        check_reach(most, self._length, self.encoder_positions)
        self.one_sequence = self.encoder_positions > self._length

    def positions(self, windows: int) -> int:
        """Return S, the positions of the context of a text of w windows."""
        whole = windows * self._length
        return min(whole, self.encoder_positions) if self.one_sequence else whole

    def of(self, texts: Sequence[str]) -> list[int]:
        """Return how many windows each text takes, 1 to n; [N]."""
        if not texts or self._most == 1:
            return [1] * len(texts)
        if self.one_sequence:
            ends = self._tokenizer.num_special_tokens_to_add()
            ids = self._tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
            return [min(-(-(len(one) + ends) // self._length), self._most) for one in ids]
        return [len(self._pieces(text)) for text in texts]

    def read(self, texts: Sequence[str]) -> Reading:
        """Return what the encoder reads of N texts."""
        reading = read_by(self._tokenizer, texts, self.positions(self._most))
        if self.one_sequence or self._most == 1:
            return reading
        # Each window has its own start and end, and words are whole, so less is read than of one sequence.
        ends = self._tokenizer.num_special_tokens_to_add()
        unread = list(reading.unread)
        for place in np.flatnonzero(reading.tokens > self._length).tolist():
            last = self._pieces(texts[place])[-1][1]
            cut = last < reading.tokens[place] - ends
            unread[place] = text_from(self._tokenizer, texts[place], last) if cut else ""
        return Reading(tokens=reading.tokens, unread=unread)

    def encode(self, texts: Sequence[str], windows: int, device: torch.device) -> Tensor:
        """Return the contexts [B, S, D] of texts of at most w windows, in the encoder's dtype."""
        if windows == 1:
            return self._encoded(tokenize(self._tokenizer, texts).to(device))
        if self.one_sequence:
            ids = self._tokenizer(
                list(texts), padding="max_length", max_length=self.positions(windows), truncation=True,
                return_tensors="pt",
            ).input_ids  # fmt: skip
            return self._encoded(torch.as_tensor(ids, dtype=torch.int64).to(device))
        each = torch.tensor([self._window_ids(text, windows) for text in texts], device=device)
        return torch.cat([self._encoded(each[:, number]) for number in range(windows)], 1)

    def _encoded(self, ids: Tensor) -> Tensor:
        return encode_text(self._encoder, ids, self._tokenizer.pad_token_id)

    def _window_ids(self, text: str, windows: int) -> list[list[int]]:
        """Return the ids of w windows, [w][T]; those after the text's end are windows of an empty text."""
        start, *end = self._tokenizer("").input_ids
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        pieces = [ids[first:last] for first, last in self._pieces(text)]
        pieces += [[]] * (windows - len(pieces))
        whole = [[start, *piece, *end] for piece in pieces]
        return [[*one, *[self._tokenizer.pad_token_id] * (self._length - len(one))] for one in whole]

    def _pieces(self, text: str) -> list[tuple[int, int]]:
        """Return the range of tokens in each of the 1 to n windows of a text.

        A window ends between words where there is one, and the last one where it is full.
        """
        encoding = self._tokenizer(text, add_special_tokens=False, verbose=False)
        words = encoding.word_ids(0) if self._tokenizer.is_fast else list(range(len(encoding.input_ids)))
        room = self._length - self._tokenizer.num_special_tokens_to_add()
        pieces: list[tuple[int, int]] = []
        start = 0
        while len(pieces) < self._most and (start < len(words) or not pieces):
            stop = min(start + room, len(words))
            if stop < len(words) and len(pieces) + 1 < self._most:
                whole = stop
                while whole > start and words[whole - 1] == words[stop]:
                    whole -= 1
                stop = whole if whole > start else stop
            pieces.append((start, stop))
            start = stop
        return pieces


def check_reach(windows: int, length: int, positions: int) -> None:
    """Refuse windows of which the last one is past an encoder's positions.

    Args:
        windows: n.
        length: T.
        positions: tokens that the encoder reads at most.

    Raises:
        AltDiffusionError: the error states both numbers.
    """
    most = -(-positions // length)
    if positions > length and windows > most:
        raise AltDiffusionError(
            f"generate.prompt_windows {windows}",
            f"is {windows * length} tokens in windows of {length}, and the text encoder has {positions} positions",
            f"give at most {most}",
        )
