"""Concepts of the demo: things with an image and a human-translated name in every language.

Names and keywords are Unicode CLDR's emoji annotations. A concept's key is its code point in hex. U+FE0F,
which only asks a renderer for colour, is stripped wherever names and images are joined.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from altdiffusion.errors import AltDiffusionError
from altdiffusion.languages import CODES
from demo.npm import CLDR, NOTO, TWEMOJI, default_cache, fetch

OFF_TARGET: tuple[str, ...] = ("sv", "el", "he", "fi", "cs", "hu", "id", "fa", "ro", "bg")
HELD_OUT_SHARE = 0.10
_SALT = "altdiffusion-demo-held-out-1"
_COLOUR = "\ufe0f"

# Things that differ by shape and colour even at 32 pixels. The rows are taken in turn, so that any prefix of
# the choice is mixed; a row may only hold images of the categories named in front of it.
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
    """One thing, its names and keywords by language: the 18 and `OFF_TARGET`.

    Keywords leave out the name itself and every word that would reveal a held-out name of the language.
    """

    key: str
    char: str
    category: str
    names: dict[str, str]
    keywords: dict[str, tuple[str, ...]]


def demo_concepts(n: int = 128, cache: Path | None = None) -> tuple[Concept, ...]:
    """Return the first `n` concepts of the choice, always the same ones in the same order.

    Raises:
        AltDiffusionError: more concepts are asked for than the choice holds.
    """
    every = _load(cache or default_cache())
    if not 1 <= n <= len(every):
        raise AltDiffusionError(f"{n} demo concepts", f"the choice holds {len(every)}", "ask for fewer")
    return every[:n]


def held_out(concept: Concept | str, language: str) -> bool:
    """Return whether the pair never appears in the crawl, so that its name is unseen in training; never for English.

    A keyed draw: it depends on nothing but the concept's key and the language.
    """
    if language == "en":
        return False
    key = concept if isinstance(concept, str) else concept.key
    digest = hashlib.sha256(f"{_SALT}/{key}/{language}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def spelled_elsewhere(concept: Concept, language: str) -> bool:
    """Return whether the name is also the concept's name in another language that is not held out ("banana").

    Such a held-out name is not unseen: evaluation counts it separately or states it.
    """
    name = concept.names[language].casefold()
    return any(
        concept.names[other].casefold() == name for other in CODES if other != language and not held_out(concept, other)
    )


def annotations(cache: Path | None, language: str) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Return CLDR's short names (`tts`) and keywords (`default`) of one language, by character, of all its emoji."""
    path = fetch(CLDR, cache) / "annotations" / language / "annotations.json"
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


def icon_name(package_folder: Path, key: str) -> str | None:
    """Return the icon set's name of a concept, None where it has no image."""
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
        names[language], keywords[language] = annotations(cache, language)
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
    secret = {language: [c.names[language].casefold() for c in chosen if held_out(c, language)] for language in CODES}
    return tuple(
        replace(
            concept,
            keywords={
                language: tuple(word for word in words if not _reveals(word, secret.get(language, ())))
                for language, words in concept.keywords.items()
            },
        )
        for concept in chosen
    )


def _reveals(word: str, names: Sequence[str]) -> bool:
    return any(name in word.casefold() for name in names)


def _in_turn() -> list[tuple[str, frozenset[str]]]:
    """Return the choice read column by column."""
    longest = max(len(chars) for _, chars in _CHOICE)
    return [(chars[i], allowed) for i in range(longest) for allowed, chars in _CHOICE if i < len(chars)]
