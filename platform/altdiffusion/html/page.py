"""HTML from templates, in which no text can become markup, turn the page's direction or fill it.

`templates/base.html.j2` is the frame of every page: its Content-Security-Policy lets it load nothing, and it holds the
style sheet. A template has its values from Python and adds only markup.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import unicodedata
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

# Marks that change the direction of what follows; the page sets directions itself, by element.
BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_DROPPED = frozenset({"Cc", "Cs", "Co", "Cn", "Zl", "Zp"})
_MARKS_IN_A_ROW = 4  # more do not occur in any writing system; they pile up over the neighbouring lines
_SIGN = "\N{REPLACEMENT CHARACTER}"


def render(template: str, **values: Any) -> str:
    """Return the page that a template makes of values; the same values give the same text.

    Args:
        template: the name of a file in `templates/`.
        values: the template's variables. What a template prints of them passes through `fit`, unless it is `Markup`.

    Raises:
        jinja2.UndefinedError: the template uses a name that there is no value for.
        TypeError: the template prints a value that is None.
    """
    return environment().get_template(template).render(**values)


def fit(value: object, limit: int = 200) -> Markup:
    """Return `plain` text as HTML text or attribute."""
    return escape(plain(str(value), limit))


def plain(value: str, limit: int = 200) -> str:
    """Return at most `limit` characters, with an ellipsis where more follow; controls and direction marks are signs."""
    kept: list[str] = []
    marks = 0
    for char in value[:limit]:
        category = unicodedata.category(char)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if char in "\t\n\r":
            kept.append(" ")
        elif category in _DROPPED or char in BIDI:
            kept.append(_SIGN)
        elif marks <= _MARKS_IN_A_ROW:
            kept.append(char)
    return "".join(kept) + ("…" if len(value) > limit else "")


def percent(part: float, whole: float) -> str:
    """Return a share for people: only zero is 0 %, and only all is 100 %."""
    if not whole:
        return "–"
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "< 0.1 %"
    if 99.9 < share < 100:
        return "> 99.9 %"
    return f"{share:.1f} %"


def count(value: float, exact: bool = True) -> str:
    """Return a number of rows; an estimate has three digits and is marked as one."""
    if exact or value == 0:
        return f"{value:,.0f}"
    return f"≈ {float(f'{value:.3g}'):,.0f}"


def size(value: float) -> str:
    """Return a number of bytes with three digits."""
    for name, unit in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.0f} B"


def _printed(value: Any) -> Any:
    """Return what a template prints for a value."""
    if value is None:
        raise TypeError("a template prints a value that is None")
    return value if isinstance(value, Markup) else fit(value)


def script_of(name: str) -> dict[str, Markup]:
    """Return a script of `templates/` and its SHA-256 for the page's policy, as a template prints them."""
    loader = environment().loader
    assert loader is not None
    text = loader.get_source(environment(), name)[0]
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"script": Markup(text), "script_sha256": Markup(digest)}


@functools.cache
def environment() -> Environment:
    """Return the environment of the templates, in which text is escaped and a missing name is an error."""
    made = Environment(
        loader=PackageLoader("altdiffusion.html"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printed,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"fit": fit, "percent": percent, "count": count, "size": size}
    made.globals["zip"] = zip
    return made
