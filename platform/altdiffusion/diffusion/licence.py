"""The licence that a model folder says it is under."""

from __future__ import annotations

import re

import yaml

from altdiffusion.diffusion.folder import CARD, read_lineage
from altdiffusion.storage import files

_FRONT = re.compile(r"\A\ufeff?---\r?\n(.*?)\r?\n---\s*(?:\r?\n|\Z)", re.DOTALL)


def licence_of(folder: str) -> str | None:
    """The licence's short name (as the hub spells it), from the folder's lineage or its card; None if neither says."""
    recorded = (read_lineage(folder) or {}).get("licence")
    if isinstance(recorded, str):
        return recorded
    try:
        card = files.read_bytes(files.join(folder, CARD)).decode(errors="replace")
        found = _FRONT.match(card)
        front = yaml.safe_load(found[1]) if found else None
    except (FileNotFoundError, yaml.YAMLError):
        return None
    licence = front.get("license") if isinstance(front, dict) else None
    return licence if isinstance(licence, str) else None
