"""Which images count as the same, and how the search for them is split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from altdiffusion.constraints import Checked, at_least, between


@dataclass(frozen=True, kw_only=True, slots=True)
class DistinctConfig(Checked):
    """Duplicates among downloaded images."""

    within: Literal["language", "all"] = "language"
    """`language`: one image may stay once per language, with its caption there; `all`: once altogether."""
    max_distance: Annotated[int | None, between(0, 12, "give bits, e.g. 4, or null for equal bytes only")] = 4
    """Bits of the 64-bit perceptual hash in which two near-duplicates differ at most; null looks for equal bytes only.
    The hash has as many ones as zeros, so distances are even."""
    buckets: Annotated[int, between(1, 65536)] = 16
    """Parts of the key space; one `compare` unit holds one of them, about
    160 bytes x images x (max_distance + 2) / buckets."""
    rows_per_unit: Annotated[int, at_least(1)] = 200_000
    """Images whose keys one `fingerprint` unit writes (whole shards, at least one); it writes `buckets` files."""
