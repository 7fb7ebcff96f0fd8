"""Which images count as the same, and how the search for them is cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class DistinctConfig:
    """Duplicates among downloaded images."""

    within: Literal["language", "all"] = "language"
    """`language`: one image may stay once in each language, with its caption there; `all`: once altogether."""
    max_distance: int | None = 4
    """Bits of the 64-bit perceptual hash in which two near-duplicates differ at most; null looks for equal bytes only.
    The hash has as many ones as zeros, so distances are even."""
    buckets: int = 16
    """Parts of the key space; one `compare` unit holds one of them, about
    160 bytes x images x (max_distance + 2) / buckets."""
    rows_per_unit: int = 200_000
    """Images whose keys one `fingerprint` unit writes (whole shards, at least one); it writes `buckets` files."""

    def __post_init__(self) -> None:
        if self.max_distance is not None and not 0 <= self.max_distance <= 12:
            raise ValueError("max_distance: must be between 0 and 12 bits; give e.g. 4, or null for equal bytes only")
        if not 1 <= self.buckets <= 65536:
            raise ValueError("buckets: must be between 1 and 65536; give e.g. 16")
        if self.rows_per_unit < 1:
            raise ValueError("rows_per_unit: must be at least 1; give e.g. 200000")
