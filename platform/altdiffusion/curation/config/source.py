"""What a source is: where its parts lie and what its columns are called."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from altdiffusion.config import operational

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,99}")
Preset = Literal["laion-base", "laion-joined", "laion-aesthetic"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """A table of links as published: Parquet parts with LAION's columns."""

    name: str
    """Short name; it becomes the `source` column and the name of the source reference."""
    uri: str = operational()
    """Glob of Parquet parts on any fsspec URI; the parts are taken in the order of their names."""
    preset: Preset = "laion-base"
    """Which columns must be there: base (sizes, similarity), joined (+ hash, scores), aesthetic (+ aesthetic)."""
    language: str | None = None
    """Label of rows that bring none of their own: `en` for LAION-2B-en, whose rows are English by construction."""
    swapped_sizes: bool | None = None
    """Whether WIDTH holds the height; null means what LAION published: true for the base release only."""
    blocklist: str | None = operational(None)
    """URI of a text file with one `url:`, `domain:` or `hash:` entry a line: rows that must never come back."""
    blocklist_sha256: str | None = None
    """SHA-256 (hex) of that file: the list that was applied is part of the result."""
    rows_per_unit: int = 100_000
    """Rows of one unit at most."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError("name: is not usable; use up to 100 letters, digits, '.', '_' and '-'")
        if self.rows_per_unit < 1:
            raise ValueError("rows_per_unit: must be at least 1; give e.g. 100000")
        if (self.blocklist is None) != (self.blocklist_sha256 is None):
            raise ValueError("blocklist_sha256: blocklist and its SHA-256 belong together; give both or neither")

    @property
    def sizes_are_swapped(self) -> bool:
        return self.preset == "laion-base" if self.swapped_sizes is None else self.swapped_sizes
