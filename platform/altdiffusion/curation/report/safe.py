"""Text from the open web, made fit to stand in a page: nothing in it can be markup, turn the page round or fill it."""

from __future__ import annotations

import html
import unicodedata

# Marks that change the direction of what follows; the page sets directions itself, by element.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_DROPPED = frozenset({"Cc", "Cs", "Co", "Cn", "Zl", "Zp"})
_MARKS_IN_A_ROW = 4  # more are no writing system's; they pile up over the neighbouring lines
_SIGN = "\N{REPLACEMENT CHARACTER}"


def escaped(value: object, limit: int = 200) -> str:
    """At most `limit` characters as HTML text or attribute; controls and direction marks appear as one sign each."""
    return html.escape(plain(str(value), limit), quote=True)


def plain(value: str, limit: int = 200) -> str:
    """The same before escaping."""
    kept: list[str] = []
    marks = 0
    for char in value[:limit]:
        category = unicodedata.category(char)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if char in "\t\n\r":
            kept.append(" ")
        elif category in _DROPPED or char in _BIDI:
            kept.append(_SIGN)
        elif marks <= _MARKS_IN_A_ROW:
            kept.append(char)
    return "".join(kept) + ("…" if len(value) > limit else "")
