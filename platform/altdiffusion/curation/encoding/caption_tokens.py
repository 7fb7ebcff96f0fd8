"""Captions as token ids: what the text encoder will read, and nothing else.

The published multilingual shards have the caption and its language in one field, `caption\\tlang`, and the released
training code passes the whole field to the encoder. Select removes the suffix, and a caption that still has it is
refused here.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from altdiffusion.errors import AltDiffusionError


def open_tokenizer(folder: str, name: str) -> Any:
    """Return the tokenizer of a local folder; `name` is its name in errors.

    Raises:
        AltDiffusionError: it cannot be opened with transformers' own classes.
    """
    from pathlib import Path

    from transformers import AutoTokenizer

    from altdiffusion.diffusion import weight_files

    remedy = "give the folder of a tokenizer, with tokenizer.json, as save_pretrained writes it"
    return weight_files.open_tokenizer(AutoTokenizer, Path(folder), f"tokenizer {name}", remedy=remedy)


def token_ids(tokenizer: Any, captions: list[str], max_length: int) -> pa.Array:
    """Return the token ids of each caption, padded and truncated to `max_length`; list<int32>.

    Raises:
        AltDiffusionError: a caption still holds the tab that published data puts before a language code, or the
            tokenizer does not pad.
    """
    from altdiffusion.diffusion.text_encoder import check_captions  # imports torch, which planning need not wait for

    check_captions(captions)
    if not captions:
        return pa.array([], pa.list_(pa.int32()))
    ids = tokenizer(captions, padding="max_length", truncation=True, max_length=max_length)["input_ids"]
    if any(len(row) != max_length for row in ids):
        raise AltDiffusionError(
            f"tokenizer {tokenizer.name_or_path}", f"does not pad to {max_length}", "give it a padding token"
        )
    return pa.array(ids, pa.list_(pa.int32()))
