"""Which rows stay, and how many buckets they are split into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectConfig:
    """Which rows stay. A null threshold switches its filter off; all score comparisons are strict, as LAION's are."""

    min_side: int | None = 256
    """Pixels; the shorter side must have at least so many."""
    max_aspect: float | None = 3.0
    """Longer side / shorter side, at most."""
    similarity_above: float | None = None
    """CLIP similarity on the source's own scale (English and multilingual sets differ)."""
    punsafe_below: float | None = 0.5
    pwatermark_below: float | None = 0.8
    aesthetic_above: float | None = None
    """Aesthetics V1 takes 7."""
    keep_null: tuple[Literal["size", "similarity", "punsafe", "pwatermark", "aesthetic"], ...] = ()
    """Filters that let a row pass whose value is null; elsewhere a null drops the row."""
    clean_captions: bool = True
    """Whether markup (tags, character references), mojibake and other Unicode forms than NFC are taken out of captions
    (`curation/language/clean.py`); if not, only the language suffix, control and widthless characters, and repeated
    spaces are. What was published stays in `original_caption` where it differs."""
    max_caption_chars: int = 4096
    """Longer captions are rejected: they are documents, not captions."""
    buckets: int = 8
    """Hash buckets of URLs the accepted rows are split into, one shard each: buckets x units shards in all. A dedup
    unit takes about 50 bytes x accepted rows / buckets of memory."""

    def __post_init__(self) -> None:
        if self.min_side is not None and self.min_side < 1:
            raise ValueError("min_side: must be at least 1 pixel; give null to switch the filter off")
        if self.max_aspect is not None and self.max_aspect < 1:
            raise ValueError("max_aspect: is longer / shorter side and so never below 1; give e.g. 3.0")
        if not 1 <= self.max_caption_chars <= 16_384:
            raise ValueError("max_caption_chars: must be between 1 and 16384; give e.g. 4096")
        if not 1 <= self.buckets <= 4096:
            raise ValueError("buckets: must be between 1 and 4096; give e.g. 8")
