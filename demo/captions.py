"""The texts of the images: a concept's translated name, alone, with keywords, or after the word
"drawing" (or "image", where that is the plainer word).

The forms need no grammar, so every text stays what its translators wrote. The one word added is `_DRAWING`.
"""

from __future__ import annotations

import hashlib

from demo.concepts import Concept, has_images

VARIANTS: tuple[str, ...] = ("name", "words", "drawing")
KEYWORDS = 3
_DRAWING: dict[str, str] = {
    "en": "Drawing", "zh": "图画", "ja": "イラスト", "th": "ภาพวาด", "ko": "그림", "hi": "तस्वीर", "uk": "Зображення",
    "ar": "رسم", "tr": "Resim", "vi": "Hình vẽ", "pl": "Rysunek", "nl": "Afbeelding", "pt": "Desenho",
    "it": "Disegno", "es": "Dibujo", "de": "Zeichnung", "fr": "Dessin", "ru": "Рисунок",
}  # fmt: skip
_COLON = {"zh": "：", "ja": "：", "fr": " : "}
_COMMA = {"zh": "、", "ja": "、", "ar": "، ", "fa": "، "}


def caption(concept: Concept, language: str, variant: str) -> str:
    """Return one text. Two languages' texts of a concept may be equal (fr and en "orange"), as in the real web.

    Args:
        concept: one of `demo_concepts()`.
        language: any language of the concept; "drawing" exists for the 18 only.
        variant: one of `VARIANTS`.
    """
    name = concept.names[language]
    colon, comma = _COLON.get(language, ": "), _COMMA.get(language, ", ")
    if variant == "name":
        return name
    if variant == "drawing":
        return f"{_DRAWING[language]}{colon}{name}"
    words = _words(concept, language)
    return f"{name}{colon}{comma.join(words)}" if words else name


def captions(concept: Concept, language: str) -> dict[str, str]:
    """Return the different texts of a pair's images, by variant; none where no image has a text in the language."""
    return variants(concept, language) if has_images(concept, language) else {}


def variants(concept: Concept, language: str) -> dict[str, str]:
    """Return the different texts of a name in one of the 18 languages, by variant."""
    texts = {variant: caption(concept, language, variant) for variant in VARIANTS}
    return {variant: text for variant, text in texts.items() if variant == "name" or text != texts["name"]}


def _words(concept: Concept, language: str) -> tuple[str, ...]:
    """Return a keyed choice of keywords, in CLDR's order."""
    words = concept.keywords[language]
    ranked = sorted(words, key=lambda word: hashlib.sha256(f"{concept.key}/{language}/{word}".encode()).digest())
    return tuple(word for word in words if word in ranked[:KEYWORDS])
