"""Nine artists who drew the same things: two for the generator, six for the judge, one for the control.

The generator learns from the first two. The judge learns from six others, so that it cannot recognise a file that the
generator copied; the ninth artist's images are a control that neither of them saw. Icons are found by a concept's key.
Where a set does not name the code points, its icons are found by the names that the other sets and Unicode use.
"""

from __future__ import annotations

import functools
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from demo.npm import (
    CLDR,
    EMOJIONE,
    EMOJIONE_V1,
    FLUENT,
    FXEMOJI,
    NOTO,
    NOTO_V1,
    OPENMOJI,
    STREAMLINE,
    TWEMOJI,
    Package,
    fetch,
)

Use = Literal["generator", "judge", "control"]
COLOUR = "fe0f"
"""U+FE0F, which only asks a renderer for colour, as it occurs in keys."""


@dataclass(frozen=True, kw_only=True)
class Artist:
    """One set of icons, and what the demo uses it for."""

    name: str
    package: Package
    use: Use


ARTISTS: tuple[Artist, ...] = (
    Artist(name="noto", package=NOTO, use="generator"),
    Artist(name="twemoji", package=TWEMOJI, use="generator"),
    Artist(name="noto-v1", package=NOTO_V1, use="judge"),
    Artist(name="fxemoji", package=FXEMOJI, use="judge"),
    Artist(name="emojione", package=EMOJIONE, use="judge"),
    Artist(name="emojione-v1", package=EMOJIONE_V1, use="judge"),
    Artist(name="streamline", package=STREAMLINE, use="judge"),
    Artist(name="openmoji", package=OPENMOJI, use="judge"),
    Artist(name="fluent", package=FLUENT, use="control"),
)
BY_NAME: dict[str, Artist] = {artist.name: artist for artist in ARTISTS}
_NAMED = ("noto", "twemoji", "fluent", "openmoji")  # sets that state the code points of their icons


def artists(*uses: Use) -> tuple[str, ...]:
    """Return the names of the artists of the given uses, in their fixed order."""
    return tuple(artist.name for artist in ARTISTS if artist.use in uses)


@functools.cache
def icons(artist: str, cache: Path | None) -> Mapping[str, str]:
    """Return the name of an artist's icon by the concept's key, such as "1f418"; the first name in order counts."""
    drawn = _drawn(artist, cache)
    found: dict[str, str] = {}
    if artist in _NAMED:
        for key, name in _stated(artist, cache).items():
            if name in drawn:
                found.setdefault(key, name)
        return found
    by_name = _keys_by_name(cache)
    for name in sorted(drawn):
        candidates = (name, name.replace("-", ""), name.rstrip("0123456789").rstrip("-"))
        key = next((by_name[text] for text in candidates if text in by_name), None)
        if key is not None:
            found.setdefault(key, name)
    return found


def icon(artist: str, key: str, cache: Path | None) -> tuple[str, float, float] | None:
    """Return an icon's SVG body, width and height; None where the artist did not draw the concept."""
    table = _table(artist, cache)
    name = icons(artist, cache).get(key)
    if name is None:
        return None
    entry = table["icons"].get(name) or table["icons"][table["aliases"][name]["parent"]]
    width, height = (float(entry.get(edge, table.get(edge, 16))) for edge in ("width", "height"))
    return entry["body"], width, height


def slug(text: str) -> str:
    """Return a name as icon sets write it: lower case, hyphens between words."""
    kept = "".join(c if c.isalnum() and c.isascii() else "-" for c in text.lower().replace("'", "").replace("’", ""))
    return "-".join(part for part in kept.split("-") if part)


def key_of(char: str) -> str:
    """Return the key of a character or sequence, without U+FE0F."""
    return "-".join(f"{ord(c):x}" for c in char if f"{ord(c):x}" != COLOUR)


@functools.cache
def _table(artist: str, cache: Path | None) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((fetch(BY_NAME[artist].package, cache) / "icons.json").read_text())
    return table


def _drawn(artist: str, cache: Path | None) -> set[str]:
    table = _table(artist, cache)
    aliases = {name for name, entry in table.get("aliases", {}).items() if entry.get("parent") in table["icons"]}
    return table["icons"].keys() | aliases


def _stated(artist: str, cache: Path | None) -> dict[str, str]:
    chars = json.loads((fetch(BY_NAME[artist].package, cache) / "chars.json").read_text())
    return {"-".join(part for part in key.split("-") if part != COLOUR): name for key, name in chars.items()}


@functools.cache
def _keys_by_name(cache: Path | None) -> Mapping[str, str]:
    """Return the key of every name of a thing: the other sets', CLDR's English ones, Unicode's; hyphens or none."""
    found: dict[str, str] = {}
    for artist in _NAMED:
        for key, name in _stated(artist, cache).items():
            found.setdefault(name, key)
    english = json.loads((fetch(CLDR, cache) / "annotations" / "en" / "annotations.json").read_text())
    for char, entry in english["annotations"]["annotations"].items():
        if "tts" in entry:
            found.setdefault(slug(entry["tts"][0]), key_of(char))
        if len(char) == 1:
            found.setdefault(slug(unicodedata.name(char, "")), key_of(char))
    for name, key in tuple(found.items()):
        found.setdefault(name.replace("-", ""), key)
    return found
