"""Where a text may be divided: between clusters, which nothing may divide, and at the ends of lines."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

ZWJ = "\u200d"
_VIRAMAS = frozenset("\u094d\u09cd\u0a4d\u0acd\u0b4d\u0c4d\u0ccd\u0d4d\u17d2\u1039")
_SPACING_VOWELS = frozenset("\u0e33\u0eb3")  # Thai and Lao AM, which are letters to Unicode but hang on a consonant
_LEADING_VOWELS = "\u0e40\u0e41\u0e42\u0e43\u0e44\u0ec0\u0ec1\u0ec2\u0ec3\u0ec4"
_NOT_FIRST = frozenset(
    "、。，．・：；？！」』）］｝〕〉》】〙〗’”‐–〜～…‥々ゝゞヽヾーぁぃぅぇぉっゃゅょゎゕゖァィゥェォッャュョヮヵヶ)]},.;:?!%"
)
_DIVIDING = frozenset("-‐–—/\u200b\u00ad")
_NOT_LAST = frozenset("「『（［｛〔〈《【〘〖‘“([{$¥￥")


def clusters(text: str) -> list[int]:
    """Return the ends of what a reader sees as single characters: a letter with its marks, a conjunct, an emoji."""
    ends = []
    flags = 0  # regional indicators in a row: every two of them are a flag
    for index in range(1, len(text)):
        flags = flags + 1 if _is_flag(text[index - 1]) else 0
        if not _belongs(text[index - 1], text[index]) and not (flags % 2 == 1 and _is_flag(text[index])):
            ends.append(index)
    return [*ends, len(text)] if text else []


def line_ends(text: str) -> list[int]:
    """Return where a line may end: at spaces, and between clusters of scripts that are written without spaces.

    Thai and Lao are divided at syllables that can be recognised without a dictionary.
    """
    return [
        end
        for end in clusters(text)
        if end == len(text)
        or text[end - 1].isspace()
        or (_may_divide(text, end) and text[end] not in _NOT_FIRST and text[end - 1] not in _NOT_LAST)
    ]


def last_fitting(text: str, ends: Sequence[int], fits: Callable[[str], bool]) -> int:
    """Return the last of `ends` up to which the text fits, or 0."""
    high = min(8, len(ends))
    while high < len(ends) and fits(text[: ends[high - 1]].rstrip()):  # the longer a text, the longer shaping takes
        high = min(2 * high, len(ends))
    low = 0
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if fits(text[: ends[middle]].rstrip()) else (low, middle)
    return ends[low - 1] if low else 0


def _belongs(before: str, character: str) -> bool:
    kind = unicodedata.category(character)
    if kind in ("Mn", "Mc", "Me", "Cf") or character in _SPACING_VOWELS or "\U0001f3fb" <= character <= "\U0001f3ff":
        return True
    if before == ZWJ or (before in _VIRAMAS and kind == "Lo"):
        return True
    return "\u1100" <= before <= "\u11ff" and "\u1160" <= character <= "\u11ff"  # vowels and finals of Hangul jamo


def _is_flag(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _may_divide(text: str, end: int) -> bool:
    before, after = text[end - 1], text[end]
    if "\u0e00" <= after <= "\u0eff":
        return after in _LEADING_VOWELS and before not in _LEADING_VOWELS
    if before in _DIVIDING and after.isalpha():
        return True
    if _is_katakana(before) and _is_katakana(after):  # a loan word
        return False
    return _is_ideographic(before) or _is_ideographic(after)


def _is_katakana(character: str) -> bool:
    return "\u30a0" <= character <= "\u30ff"


def _is_ideographic(character: str) -> bool:
    return unicodedata.east_asian_width(character) in ("W", "F") and not "\uac00" <= character <= "\ud7a3"
