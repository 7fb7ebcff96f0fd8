"""Sources by name: what LAION published, and in which columns."""

from __future__ import annotations

from dataclasses import dataclass

_LINKS = ("url", "caption", "width", "height")
_BASE = (*_LINKS, "similarity")
_JOINED = (*_BASE, "sample_id", "pwatermark", "punsafe")
_AESTHETIC = (*_JOINED, "aesthetic")


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """What is known about a source before it is opened."""

    requires: tuple[str, ...]
    """Columns, under our names, that every part must have."""
    swapped_sizes: bool = False
    """Whether WIDTH holds the height, as in the base releases of LAION-5B."""
    language: str | None = None
    """Label of rows without one: the English sets are English by construction."""
    published: bool = True
    """Whether it is a published set, which is not read without a blocklist."""
    safe: bool = False
    """Whether its publisher removed what was reported, up to its release: then an empty blocklist is enough."""
    mapped: bool = False
    """Whether its columns go by the config's `columns` alone, not by LAION's names."""


def _presets() -> dict[str, Preset]:
    presets = {
        # LAION's column shapes, for private sets (the demo, tests).
        "laion-base": Preset(requires=_BASE, swapped_sizes=True, published=False),
        "laion-joined": Preset(requires=_JOINED, published=False),
        "laion-aesthetic": Preset(requires=_AESTHETIC, published=False),
        # A table of links of one's own: LAION's column names in any spelling, and `columns` for all others.
        "own": Preset(requires=("url", "caption"), published=False),
        # Any other Parquet with links (COYO, DataComp, ...).
        "columns": Preset(requires=("url", "caption"), mapped=True),
    }
    for name in ("2b-en", "2b-multi", "1b-nolang"):
        label = ("source_language",) if name == "2b-multi" else ()
        language = "en" if name == "2b-en" else None
        presets |= {
            f"laion{name}": Preset(requires=(*_BASE, *label), swapped_sizes=True, language=language),
            f"laion{name}-joined": Preset(requires=(*_JOINED, *label), language=language),
            f"laion{name}-aesthetic": Preset(requires=(*_AESTHETIC, *label), language=language),
            f"relaion{name}-research": Preset(requires=_LINKS, language=language),
            f"relaion{name}-research-safe": Preset(requires=_LINKS, language=language, safe=True),
            f"relaion{name}-aesthetic": Preset(requires=(*_LINKS, "aesthetic"), language=language),
        }
    return presets


PRESETS: dict[str, Preset] = _presets()
"""By the name of the set, lower case. Re-LAION's sets were published in one shape each, with columns that LAION-5B had
in three: they promise the least, and a filter whose column a part lacks is refused when the parts are scanned."""
