"""The licence that a model folder states."""

from __future__ import annotations

import re

import yaml

from altdiffusion.diffusion.folder import CARD, read_lineage
from altdiffusion.storage import files

_FRONT = re.compile(r"\A\ufeff?---\r?\n(.*?)\r?\n---\s*(?:\r?\n|\Z)", re.DOTALL)


def licence_of(folder: str) -> str | None:
    """Return the licence's short name (in the hub's spelling) from the folder's lineage or its card.

    Returns:
        None where neither states a licence.
    """
    recorded = (read_lineage(folder) or {}).get("licence")
    if isinstance(recorded, str):
        return recorded
    try:
        card = files.read_bytes(files.join(folder, CARD)).decode(errors="replace")
        match = _FRONT.match(card)
        front = yaml.safe_load(match[1]) if match else None
    except (FileNotFoundError, yaml.YAMLError):
        return None
    licence = front.get("license") if isinstance(front, dict) else None
    return licence if isinstance(licence, str) else None
