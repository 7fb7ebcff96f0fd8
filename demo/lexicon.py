"""Everything that CLDR names in every one of the 18 languages: what the encoders of the small base read.

The lexicon is about 1,870 things, with their names and keywords. Texts that contain a name which must stay unseen in
that language (`demo.concepts.unseen`) are left out.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from altdiffusion.languages import CODES
from demo.artists import icons, key_of
from demo.captions import variants
from demo.concepts import Concept, annotations, demo_concepts, unseen
from demo.images import STYLES


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A text of a thing in a language, and the English text of the same variant."""

    place: int
    """The thing's place in the lexicon."""
    variant: str
    english: str
    text: str


@functools.lru_cache(maxsize=4)
def lexicon(cache: Path, concepts: int, more: tuple[str, ...] = ()) -> tuple[Concept, ...]:
    """Return the first `concepts` concepts of the demo, then all other things by key, always in the same order.

    Args:
        more: further languages of CLDR that the entries must have; the demo's concepts have theirs in any case.
    """
    chosen = demo_concepts(concepts, cache)
    languages = tuple(dict.fromkeys((*CODES, *more)))
    tables = {language: annotations(cache, language, derived=True) for language in languages}
    mine = {concept.key for concept in chosen}
    everywhere = set.intersection(*(set(names) for names, _ in tables.values()))
    others = (
        Concept(
            key=key_of(char),
            char=char,
            category="",
            names={language: names[char] for language, (names, _) in tables.items()},
            keywords={language: keywords.get(char, ()) for language, (_, keywords) in tables.items()},
        )
        for char in sorted(everywhere, key=key_of)
        if key_of(char) not in mine
    )
    return (*chosen, *others)


def drawn(entries: tuple[Concept, ...], cache: Path) -> list[int]:
    """Return the places of the entries that every artist of the generator drew."""
    tables = [icons(style, cache) for style in STYLES]
    return [place for place, entry in enumerate(entries) if all(entry.key in table for table in tables)]


def pairs(entries: tuple[Concept, ...], concepts: int, language: str) -> Iterator[Pair]:
    """Yield the parallel texts of a language, in the lexicon's order, without what must stay unseen."""
    secret = [entry.names[language].casefold() for entry in entries[:concepts] if unseen(entry, language)]
    for place, entry in enumerate(entries):
        if place < concepts and unseen(entry, language):
            continue
        english = variants(entry, "en")
        for variant, text in variants(entry, language).items():
            if not any(name in text.casefold() for name in secret):
                yield Pair(place=place, variant=variant, english=english.get(variant, english["name"]), text=text)
