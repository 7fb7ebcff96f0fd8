"""Prompts by region along the width: a row's value in one form, and the regions of this form.

A row gives a list of texts, which share the width equally, or a list of {prompt, from, to} with shares of the width
from the left. It is stored as JSON of the latter, so that equal regions are equal texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from altdiffusion.generation.image_request import Region
from altdiffusion.storage import files

MOST = 64
_KEYS = {"prompt", "from", "to"}
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class BadRegions(ValueError):
    """What is wrong with a row's regions."""


def canonical_regions(text: str, narrowest: float, most_chars: int) -> str:
    """Return a row's regions in one form, as JSON.

    Args:
        text: JSON of a list.
        narrowest: least share of the width.
        most_chars: most characters of a prompt, and of all regions together.

    Raises:
        BadRegions: the text is not such a list, or a region cannot be drawn.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRegions("is not JSON") from error
    if not isinstance(values, list) or not 1 <= len(values) <= MOST:
        raise BadRegions(f"is not a list of 1 to {MOST} regions")
    regions = [_region(value, number, len(values)) for number, value in enumerate(values)]
    for number, region in enumerate(regions, 1):
        prompt = region["prompt"]
        if not isinstance(prompt, str) or not prompt.strip():
            raise BadRegions(f"has no prompt in region {number}")
        if len(prompt) > most_chars or _CONTROL.search(prompt) or not _is_unicode(prompt):
            raise BadRegions(f"has control or half characters, or more than {most_chars}, in region {number}")
        share = region["to"] - region["from"]
        if share < narrowest * (1 - 1e-9):
            raise BadRegions(f"gives region {number} a share of {share:.4g}; the least is {narrowest:.4g}")
    if sum(len(region["prompt"]) for region in regions) > most_chars:  # the record in an image's file has limited room
        raise BadRegions(f"has more than {most_chars} characters in all regions together")
    return files.canonical_json(regions).decode()


def regions_of(stored: str | None) -> tuple[Region, ...]:
    """Return the regions of a row as stored."""
    if stored is None:
        return ()
    return tuple(Region(prompt=one["prompt"], span=(one["from"], one["to"])) for one in json.loads(stored))


def stored_regions(regions: Sequence[Region]) -> str:
    """Return regions as they are stored, which `regions_of` reads."""
    values = [{"prompt": one.prompt, "from": one.span[0], "to": one.span[1]} for one in regions]
    return files.canonical_json(values).decode()


def _region(value: Any, number: int, count: int) -> dict[str, Any]:
    if isinstance(value, str):
        return {"prompt": value, "from": number / count, "to": (number + 1) / count}
    if not isinstance(value, dict) or value.keys() != _KEYS:
        raise BadRegions(f"has a region {number + 1} that is neither a text nor {{prompt, from, to}}")
    start, stop = value["from"], value["to"]
    if not _is_share(start) or not _is_share(stop) or not start < stop:
        raise BadRegions(f"has a region {number + 1} that is not 0 <= from < to <= 1")
    return {"prompt": value["prompt"], "from": float(start), "to": float(stop)}


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
