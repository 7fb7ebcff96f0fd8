"""Concepts of the demo: things with a picture and a human-translated name in every language.

Names and keywords are Unicode CLDR's emoji annotations. A concept's key is its code point in hex. U+FE0F, which
only asks a renderer for colour, is stripped wherever names and pictures are joined.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from altdiffusion.errors import AltDiffusionError
from altdiffusion.languages import CODES
from demo.npm import CLDR, NOTO, TWEMOJI, default_cache, fetch

OFF_TARGET: tuple[str, ...] = ("sv", "el", "he", "fi", "cs", "hu", "id", "fa", "ro", "bg")
HELD_OUT_SHARE = 0.10
_SALT = "altdiffusion-demo-held-out-1"
_COLOUR = "\ufe0f"

# Things that differ by shape and colour even at 32 pixels. The rows are taken in turn, so that any prefix of
# the choice is mixed; a row may only hold pictures of the categories named in front of it.
_CHOICE: tuple[tuple[frozenset[str], str], ...] = (
    (
        frozenset({"Animals & Nature"}),
        "🐘🐢🦋🐧🐙🦊🐸🐝🦉🐬🦀🦒🐌🐞🦩🦈🦔🐄🐎🐓🐖🐇🐒🐼🦁🦓🦆🐪🦂🦜🐨🐺🦥🦐🦚🦢🐳🐟",
    ),
    (
        frozenset({"Food & Drink"}),
        "🍎🍌🍇🍓🍉🍍🍋🥕🌽🍅🥦🍕🍔🍟🍩🍪🎂🧀🥐🥚🍿🥑🥨🍣🌶🥒🥥🥝🍑🧅🍭🥞🌮🥛🍺🍷🍯🥜",
    ),
    (
        frozenset({"Objects", "Activities"}),
        "🎸🎻🎺🥁📷📱💻📺🕯💡🔑🔨✂🔔👑💎👗👕👖🧦👟🎒🪑🚪🛁🧲🔭🔬🎈🎁⚽🏀🎾🏈🎲🧸🏆🎨📎🧵🪜💣🛡🔋📦",
    ),
    (
        frozenset({"Travel & Places", "Animals & Nature", "Activities"}),
        "🚗🚌🚲🚂✈🚁🚀⛵🚜🚑🛴🏠🏰⛪🗽🎡🌋🏝🌈☀🌙⭐☁❄🔥🌊🌵🌲🌴🌻🌹🌷🍀🍁🪐⚓⛺🎪⛲🚦🌪🎄",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Concept:
    """`names` and `keywords` by language: the 18 and `OFF_TARGET`; keywords leave out the name."""

    key: str
    char: str
    category: str
    names: dict[str, str]
    keywords: dict[str, tuple[str, ...]]


def demo_concepts(n: int = 128, cache: Path | None = None) -> tuple[Concept, ...]:
    """The first `n` concepts of the choice, always the same ones in the same order.

    Raises:
        AltDiffusionError: more concepts are asked for than the choice holds.
    """
    every = _load(cache or default_cache())
    if not 1 <= n <= len(every):
        raise AltDiffusionError(f"{n} demo concepts", f"the choice holds {len(every)}", "ask for fewer")
    return every[:n]


def held_out(concept: Concept | str, language: str) -> bool:
    """Whether the pair never appears in the crawl, so that its name is unseen in training; never for English.

    A keyed draw: it depends on nothing but the concept's key and the language.
    """
    if language == "en":
        return False
    key = concept if isinstance(concept, str) else concept.key
    digest = hashlib.sha256(f"{_SALT}/{key}/{language}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def icon_name(package_folder: Path, key: str) -> str | None:
    """The icon set's name of a concept, None where it has no picture."""
    return _chars(package_folder).get(key)


@functools.lru_cache(maxsize=4)
def _chars(package_folder: Path) -> dict[str, str]:
    table: dict[str, str] = json.loads((package_folder / "chars.json").read_text())
    return {"-".join(part for part in key.split("-") if part != "fe0f"): name for key, name in table.items()}


@functools.lru_cache(maxsize=2)
def _load(cache: Path) -> tuple[Concept, ...]:
    languages = CODES + OFF_TARGET
    names: dict[str, dict[str, str]] = {}
    keywords: dict[str, dict[str, tuple[str, ...]]] = {}
    for language in languages:
        names[language], keywords[language] = _annotations(fetch(CLDR, cache), language)
    noto, twemoji = fetch(NOTO, cache), fetch(TWEMOJI, cache)
    categories = {
        icon: category
        for category, icons in json.loads((noto / "metadata.json").read_text())["categories"].items()
        for icon in icons
    }
    taken: dict[str, set[str]] = {language: set() for language in languages}
    chosen: list[Concept] = []
    for char, allowed in _in_turn():
        key = f"{ord(char):x}"
        icon = icon_name(noto, key)
        if icon is None or icon_name(twemoji, key) is None or categories.get(icon) not in allowed:
            continue
        if any(char not in names[language] for language in languages):
            continue
        if any(names[language][char].casefold() in taken[language] for language in CODES):
            continue
        for language in languages:
            taken[language].add(names[language][char].casefold())
        chosen.append(
            Concept(
                key=key,
                char=char,
                category=categories[icon],
                names={language: names[language][char] for language in languages},
                keywords={language: keywords[language].get(char, ()) for language in languages},
            )
        )
    return tuple(chosen)


def _in_turn() -> list[tuple[str, frozenset[str]]]:
    """The choice read column by column."""
    longest = max(len(chars) for _, chars in _CHOICE)
    return [(chars[i], allowed) for i in range(longest) for allowed, chars in _CHOICE if i < len(chars)]


def _annotations(package: Path, language: str) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """CLDR's short names (`tts`) and keywords (`default`) of one language, by character."""
    path = package / "annotations" / language / "annotations.json"
    table = json.loads(path.read_text())["annotations"]["annotations"]
    names: dict[str, str] = {}
    keywords: dict[str, tuple[str, ...]] = {}
    for sequence, entry in table.items():
        char = sequence.replace(_COLOUR, "")
        if "tts" in entry:
            name = entry["tts"][0]
            names[char] = name
            words = entry.get("default", ())
            keywords[char] = tuple(word for word in words if word.casefold() != name.casefold())
    return names, keywords
