"""Check that a dataset's token ids are those of the tokenizers of a run: with others it would learn noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage.dataset import Version
from altdiffusion.storage.shard_reader import ShardReader, naming_shard

PROBED = 64
"""Rows of a version's first row group that are checked: tokenizers that agree on all of them count as equal."""


@dataclass(frozen=True, kw_only=True)
class TokenColumn:
    """A column of token ids, and the text and the tokenizer that they are made from."""

    ids: str
    text: str
    tokenizer: Any


def check_token_ids(version: Version, columns: Sequence[TokenColumn]) -> None:
    """Tokenize some texts of a version again and compare the ids.

    Raises:
        AltDiffusionError: other ids come out than are stored, or the shard is missing or damaged.
    """
    if not columns:
        return
    uri, shard = version.shard_uri(0), version.shards[0]
    last = min(shard.rows, shard.row_group_rows) - 1
    names = sorted({name for column in columns for name in (column.ids, column.text)})
    with naming_shard(uri):
        reader = ShardReader(uri, shard.bytes)
        rows = reader.read(0, names, rows=np.unique(np.linspace(0, last, PROBED).astype(np.int64)))
        reader.close()
    for column in columns:
        texts, stored = rows[column.text].to_pylist(), rows[column.ids].to_pylist()
        length = len(stored[0])
        found = column.tokenizer(texts, padding="max_length", max_length=length, truncation=True).input_ids
        for text, mine, theirs in zip(texts, found, stored, strict=True):
            if list(mine) != theirs:
                raise AltDiffusionError(
                    f"{version.ref.short}, column {column.ids}",
                    f"holds the ids {_head(theirs)} for {text[:40]!r}, where this run's tokenizer gives {_head(mine)}",
                    "encode the captions with the tokenizer of the text encoder that this run trains or reads",
                )


def _head(ids: Sequence[int]) -> str:
    return " ".join(str(number) for number in ids[:8]) + " ..."
