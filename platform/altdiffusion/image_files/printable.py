"""Other people's text for a terminal."""

from __future__ import annotations

SHOWN = 300
_JOINERS = "\u200c\u200d"
"""Invisible, and needed by Persian and Indic scripts."""


def printable(value: object, shown: int = SHOWN) -> str:
    """Return a value as one line that cannot control a terminal: other than printable characters are escaped."""
    text = str(value)
    cut = text if len(text) <= shown else text[: shown - 1] + "…"
    return "".join(one if one.isprintable() or one in _JOINERS else ascii(one)[1:-1] for one in cut)
