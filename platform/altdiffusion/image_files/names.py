"""Readable names of generated images: `<id>-<seed>.<format>`, one per image and none twice.

An id is 1 to 200 of A-Z, a-z, 0-9, `.`, `_` and `-`, and begins with none of `.` and `-` (the prompts' check). A
negative seed is written with `m`, so that what follows the last `-` is the seed: ids `a` and `a-` with seeds -5 and 5
have different names. No name has more than 255 bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from altdiffusion.errors import AltDiffusionError

ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._\-]{0,199}")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])\.", re.IGNORECASE)
"""Windows opens a device for such names, whatever follows the dot. (Without a dot, `-<seed>` follows.)"""
_MARK = "~"
"""Not a character of ids."""


def file_stem(row: Mapping[str, Any]) -> str:
    """Return the name of an image without its ending.

    Args:
        row: with `id` and `seed`, as in `generations`.

    Raises:
        AltDiffusionError: the id is not one that the prompts' check accepts, so that the dataset was forged.
    """
    name, seed = row["id"], row["seed"]
    if not isinstance(name, str) or not ID.fullmatch(name):
        raise AltDiffusionError(
            f"image {str(name)[:40]!r}", "has an id that cannot be the name of a file", "draw the prompts again"
        )
    return f"{_MARK if _RESERVED.match(name) else ''}{name}-{f'm{-seed}' if seed < 0 else seed}"


def sample_key(row: Mapping[str, Any]) -> str:
    """Return the name as a key of WebDataset, which ends at the first dot."""
    return file_stem(row).replace(".", _MARK)
