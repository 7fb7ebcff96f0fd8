"""How much of each prompt the text encoder reads: it has a fixed number of positions, and the rest is cut off.

Shapes: N prompts, T positions of the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_SHOWN = 120


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the encoder reads of N prompts."""

    tokens: npt.NDArray[np.int32]
    """[N] tokens of the whole prompt, with those that the tokenizer puts at its ends."""
    unread: Sequence[str]
    """[N] the text that is cut off; empty where the whole prompt is read."""

    @property
    def truncated(self) -> npt.NDArray[np.bool_]:
        """[N] whether a part of the prompt is cut off."""
        return np.array([bool(text) for text in self.unread], bool)


def read_by(tokenizer: Any, prompts: Sequence[str], positions: int | None = None) -> Reading:
    """Return what an encoder with this tokenizer reads of prompts.

    Args:
        positions: T; None takes the tokenizer's `model_max_length`, as `text_encoder.tokenize` does.
    """
    positions = tokenizer.model_max_length if positions is None else positions
    ends = tokenizer.num_special_tokens_to_add()
    room = positions - ends
    if not prompts:
        return Reading(tokens=np.zeros(0, np.int32), unread=())
    ids = tokenizer(list(prompts), add_special_tokens=False, verbose=False).input_ids
    unread = [
        text_from(tokenizer, prompt, room) if len(one) > room else "" for prompt, one in zip(prompts, ids, strict=True)
    ]
    return Reading(tokens=np.array([len(one) + ends for one in ids], np.int32), unread=unread)


def text_from(tokenizer: Any, prompt: str, token: int) -> str:
    """Return a prompt from one of its tokens on."""
    whole = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False)
    text = prompt[whole.offset_mapping[token][0] :] if tokenizer.is_fast else tokenizer.decode(whole.input_ids[token:])
    return text.strip() or "…"  # a token without a text is cut off too


def truncation_warning(ids: Sequence[str], reading: Reading, positions: int) -> str | None:
    """Return one line on the prompts that are cut off, with the first of them; None where there are none."""
    cut = np.flatnonzero(reading.truncated)
    if not len(cut):
        return None
    first = int(cut[0])
    text = reading.unread[first]
    shown = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    return (
        f"{_prompts(len(cut))} more than the text encoder's {positions} tokens; of {ids[first]}, which has "
        f"{reading.tokens[first]}, it does not read: {shown!r}"
    )


def _prompts(number: int) -> str:
    return f"{number:,} prompts have" if number > 1 else "1 prompt has"
