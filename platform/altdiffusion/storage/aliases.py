"""Aliases of checkpoints: names such as `champion` that move from one checkpoint to a better one.

<lake>/aliases/<alias>.json     the checkpoint that has the alias now, and why
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.documents import NAME, optional_document

FOLDER = "aliases"


@dataclass(frozen=True, kw_only=True)
class Alias:
    """The checkpoint that an alias names."""

    ref: Ref
    """Reference of the checkpoint, or of the model folder where it has none."""
    content: str
    """Content digest of its model folder."""


def read_alias(lake: str, alias: str) -> Alias | None:
    """Return what an alias names, or None where it was never given.

    Raises:
        AltDiffusionError: the file is damaged.
    """
    document = optional_document(_uri(lake, alias))
    if document is None:
        return None
    return Alias(ref=Ref.parse(document.text("checkpoint")), content=document.digest("content"))


def write_alias(lake: str, alias: str, named: Alias, decision: Mapping[str, Any]) -> None:
    """Give an alias to a checkpoint, and keep the decision that led to it."""
    document = {"checkpoint": str(named.ref), "content": named.content, "decision": dict(decision)}
    files.write_atomic(_uri(lake, alias), files.canonical_json(document))


def list_aliases(lake: str) -> list[str]:
    """Return the aliases of a lake, ascending."""
    names = [
        name.removesuffix(".json") for name in files.list_names(files.join(lake, FOLDER)) if name.endswith(".json")
    ]
    return sorted(name for name in names if NAME.fullmatch(name))


def _uri(lake: str, alias: str) -> str:
    return files.within(lake, FOLDER, f"{alias}.json")
