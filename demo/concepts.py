"""Concepts of the demo: things with an image and a human-translated name in every language.

Names and keywords are Unicode CLDR's emoji annotations. A concept's key is its code point in hex. U+FE0F,
which only asks a renderer for colour, is stripped wherever names and images are joined.
"""

import difflib
import functools
import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from altdiffusion.errors import AltDiffusionError
from altdiffusion.languages import CODES
from demo.artists import artists, icons
from demo.npm import CLDR, CLDR_DERIVED, NOTO, default_cache, fetch

OFF_TARGET: tuple[str, ...] = ("sv", "el", "he", "fi", "cs", "hu", "id", "fa", "ro", "bg")
WITHOUT_IMAGES: tuple[str, ...] = ("hi", "vi", "it")
"""Languages in which no image has a text: the multilingual encoder reads them, the UNet never learned from them."""
TEXT_SHARE, UNSEEN_SHARE = 0.08, 0.09
_SALT = "altdiffusion-demo-groups-1"
_COLOUR = "\ufe0f"
_SKIN_TONES = "🏻🏼🏽🏾🏿"
_NEAR = 0.6  # similarity of two spellings, 0 to 1, from which on one reveals the other

Group = Literal["pictures", "text", "unseen"]

# Things that differ by shape and colour even at 32 pixels. The rows are taken in turn, so that any prefix of
# the choice is mixed; a row may only hold images of the categories named in front of it.
_CHOICE: tuple[tuple[frozenset[str], str], ...] = (
    (
        frozenset({"Animals & Nature"}),
        "🐼🌻🌴🐎🐞🌵🦁🌹🐢🐸🐧🦊🍁🍄🐊🐝🐬🌲🐯🐽🕊🕷🐍🐓🐚🐛🐘🍀🐌🐖🐋🐙🐵🐔🐨🐄",
    ),
    (
        frozenset({"Food & Drink"}),
        "🍷🍋🌽🍆🍎🍒🍳🍔🍉☕🍍🍅🍑🍣🌶🍦🍩🍰🍇🍞🍧🍕🍌🍓🍫🍗🍙🍡🍐🍭🍪🍺🍟🍊",
    ),
    (
        frozenset({"Objects", "Activities"}),
        "🎱🎀🎈🏀⚽🎲🎯🎁🎃🏆🎮🔬🎩🎹💡🎷🎻👑👖💊🔔🔑👜💉🚽👠✂🔋🔭🕯📷🎸🔒📎🎨🔨",
    ),
    (
        frozenset({"Travel & Places", "Animals & Nature", "Activities"}),
        "⚡🕰🚕🚦🌙💧🚲🌈🔥🚁🚑🚤☔⚓🗻🌍🎪🏡⛽❄⛺☁🚀⭐☀🚂🏰🎡🌋🚜⌛🗼✈🚌",
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


def group(concept: Concept, language: str) -> Group:
    """Return what the training can know of a concept's name in one of the 18 languages.

    - `pictures`: the name is the text of an image, or is spelled like one that is, in another language ("banana");
    - `text`: only the multilingual text encoder has read the name, in parallel text;
    - `unseen`: nothing has read the name, and no other of the 18 languages has a similar spelling for the concept.
    """
    planned = _planned(concept, language)
    if planned == "text" and concept.names[language].casefold() in _pictured(concept):
        return "pictures"
    return planned


def has_images(concept: Concept, language: str) -> bool:
    """Return whether images in the crawl have this name as their text; always in English."""
    return _planned(concept, language) == "pictures"


def unseen(concept: Concept, language: str) -> bool:
    """Return whether the name is in no training text at all; never for English."""
    return _planned(concept, language) == "unseen"


def _planned(concept: Concept, language: str) -> Group:
    """Return the group by a keyed draw, which depends on nothing but the concept's key, its names and the language."""
    if language == "en" or language not in CODES:
        return "pictures"
    drawn = _uniform(concept.key, language)
    if drawn < UNSEEN_SHARE and not _spelled_nearby(concept, language):
        return "unseen"
    if drawn < UNSEEN_SHARE + TEXT_SHARE or language in WITHOUT_IMAGES:
        return "text"
    return "pictures"


def _uniform(key: str, language: str) -> float:
    digest = hashlib.sha256(f"{_SALT}/{key}/{language}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _pictured(concept: Concept) -> frozenset[str]:
    """Return how the concept is spelled in the languages whose images it has."""
    return frozenset(concept.names[other].casefold() for other in CODES if has_images(concept, other))


def _spelled_nearby(concept: Concept, language: str) -> bool:
    """Return whether another of the 18 languages spells the concept's name alike (de "Traktor", pl "traktor").

    A name of one character is too short to be distinguished from other words, and counts as spelled alike.
    """
    name = _plain(concept.names[language])
    others = {_plain(concept.names[other]) for other in CODES if other != language}
    return len(name) < 2 or any(difflib.SequenceMatcher(None, name, other).ratio() >= _NEAR for other in others)


def _plain(text: str) -> str:
    """Return a text in lower case without accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))


def annotations(
    cache: Path | None, language: str, derived: bool = False
) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Return CLDR's short names (`tts`) and keywords (`default`) of one language, by character, of all its emoji.

    Args:
        derived: with those of sequences (flags, families), without variants in a skin tone.
    """
    tables = {"annotations": fetch(CLDR, cache)}
    if derived:
        tables["annotationsDerived"] = fetch(CLDR_DERIVED, cache)
    names: dict[str, str] = {}
    keywords: dict[str, tuple[str, ...]] = {}
    for table, folder in tables.items():
        whole = json.loads((folder / table / language / "annotations.json").read_text())
        for sequence, entry in whole[table].get("annotations", {}).items():  # none where a locale inherits all
            char = sequence.replace(_COLOUR, "")
            if "tts" in entry and not any(tone in char for tone in _SKIN_TONES):
                name = entry["tts"][0]
                names[char] = name
                words = entry.get("default", ())
                keywords[char] = tuple(word for word in words if word.casefold() != name.casefold())
    return names, keywords


@functools.lru_cache(maxsize=2)
def _load(cache: Path) -> tuple[Concept, ...]:
    languages = CODES + OFF_TARGET
    names: dict[str, dict[str, str]] = {}
    keywords: dict[str, dict[str, tuple[str, ...]]] = {}
    for language in languages:
        names[language], keywords[language] = annotations(cache, language)
    drawn = [icons(artist, cache) for artist in artists("generator")]
    categories = {
        icon: category
        for category, named in json.loads((fetch(NOTO, cache) / "metadata.json").read_text())["categories"].items()
        for icon in named
    }
    taken: dict[str, set[str]] = {language: set() for language in languages}
    chosen: list[Concept] = []
    for char, allowed in _in_turn():
        key = f"{ord(char):x}"
        if any(key not in table for table in drawn) or categories.get(drawn[0][key]) not in allowed:
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
                category=categories[drawn[0][key]],
                names={language: names[language][char] for language in languages},
                keywords={language: keywords[language].get(char, ()) for language in languages},
            )
        )
    secret = {
        language: [c.names[language].casefold() for c in chosen if not has_images(c, language)] for language in CODES
    }
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
