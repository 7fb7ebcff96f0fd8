"""Which rows stay, and how many buckets they are split into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from altdiffusion.constraints import Checked, at_least, between


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectConfig(Checked):
    """Which rows stay. A null threshold switches its filter off; all score comparisons are strict, as LAION's are."""

    min_side: Annotated[int | None, at_least(1, "give pixels, or null to switch the filter off")] = 256
    """Pixels; the shorter side must have at least this many."""
    max_aspect: Annotated[float | None, at_least(1, "it is the longer side / the shorter side; give e.g. 3.0")] = 3.0
    """Longer side / shorter side, at most."""
    similarity_above: float | None = None
    """CLIP similarity on the source's own scale (English and multilingual sets differ)."""
    punsafe_below: float | None = 0.5
    """Rows whose source gives this punsafe or a higher one are dropped; 0 to 1."""
    pwatermark_below: float | None = 0.8
    """Rows whose source gives this pwatermark or a higher one are dropped; 0 to 1."""
    aesthetic_above: float | None = None
    """Aesthetics V1 takes 7."""
    keep_null: tuple[Literal["size", "similarity", "punsafe", "pwatermark", "aesthetic"], ...] = ()
    """Filters that let a row pass whose value is null; elsewhere a null drops the row."""
    clean_captions: bool = True
    """Whether markup (tags, character references), mojibake and other Unicode forms than NFC are taken out of captions
    (`curation/language/clean.py`); if not, only the language suffix, control and widthless characters, and repeated
    spaces are. What was published stays in `original_caption` where it differs."""
    max_caption_chars: Annotated[int, between(1, 16_384)] = 4096
    """Longer captions are rejected: they are documents, not captions."""
    buckets: Annotated[int, between(1, 4096)] = 8
    """Hash buckets of URLs the accepted rows are split into, one shard each: buckets x units shards in all. A dedup
    unit takes about 50 bytes x accepted rows / buckets of memory."""


def every_row() -> SelectConfig:
    """Return the settings that keep every row with a link and a caption in a wanted language."""
    return SelectConfig(min_side=None, max_aspect=None, punsafe_below=None, pwatermark_below=None)
