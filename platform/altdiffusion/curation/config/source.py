"""What a source is: where its parts are and what its columns are called."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from altdiffusion.config import operational
from altdiffusion.constraints import PLAIN_NAME, SHA256, Checked, Invalid, at_least, each, one_of, together
from altdiffusion.curation.config.presets import PRESETS, Preset

_EMPTY = hashlib.sha256(b"").hexdigest()
COLUMNS = (
    "url", "caption", "width", "height", "similarity", "source_language", "sample_id", "pwatermark", "punsafe",
    "aesthetic", "expected_hash", "sha256", "md5", "phash",
)  # fmt: skip
"""A source's possible columns, by our names. The last three are hashes of the image, in hex, for `expected_hash`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig(Checked):
    """A table of links as published, in Parquet parts."""

    name: Annotated[str, PLAIN_NAME]
    """Short name; it becomes the `source` column and the name of the source reference."""
    uri: str = operational()
    """Glob of Parquet parts on any fsspec URI; the parts are taken in the order of their names."""
    preset: str = "laion-base"
    """Which set it is: a name of PRESETS, or `columns` for one that `columns` describes."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our name (COLUMNS) -> the source's column; LAION's own names need no entry."""
    ignore: Annotated[tuple[str, ...], each(one_of(COLUMNS))] = ()
    """Our names of columns that are not read although the source has them. Without `sample_id` (`hash`), row ids are
    computed as LAION's are."""
    language: str | None = None
    """Label of rows without one of their own; null takes the preset's (`en` for the English sets)."""
    swapped_sizes: bool | None = None
    """Whether WIDTH holds the height; null takes the preset's (true for the base releases only)."""
    blocklist: str | None = operational(None)
    """URI of a text file with a `url:`, `domain:`, `hash:` or `sha256:` entry per line: what must never return."""
    blocklist_sha256: Annotated[str | None, SHA256] = None
    """SHA-256 (hex) of that file: the list that was applied is part of the result."""
    rows_per_unit: Annotated[int, at_least(1)] = 100_000
    """Rows per unit, at most. With fewer than the parts' row groups have, row groups are read several times."""

    def conflicts(self) -> Iterator[Invalid]:
        if self.preset not in PRESETS:
            close = difflib.get_close_matches(self.preset.lower(), PRESETS, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            yield Invalid("preset", "is not a known set", f"{hint}use one of {', '.join(PRESETS)}")
        for name, column in self.columns.items():
            if name not in COLUMNS or not column:
                yield Invalid("columns", f"cannot map {name!r}", f"use our names: {', '.join(COLUMNS)}")
        if len(set(self.columns.values())) != len(self.columns):
            yield Invalid("columns", "contains the same column twice", "map each one once")
        for name in self.ignore:
            if name in self.columns:
                yield Invalid("ignore", f"contains {name}, which `columns` maps", "do one or the other")
            if name in self.shape.requires and name != "sample_id":
                yield Invalid("ignore", f"contains {name}, which {self.preset} promises", "choose another preset")
        missing = [name for name in self.shape.requires if self.shape.mapped and name not in self.columns]
        if missing:
            yield Invalid("columns", f"does not map {', '.join(missing)}", "give the name of the source's column")
        yield from self._blocklist_conflicts()

    def _blocklist_conflicts(self) -> Iterator[Invalid]:
        yield from together(self, "blocklist", "blocklist_sha256")
        if not self.shape.published or (self.blocklist is not None and self.blocklist_sha256 != _EMPTY):
            return
        why = (
            f"{self.preset} is a real set, and links of such sets were found to lead to illegal images (Re-LAION-5B "
            "removed 2,236 from LAION-5B) and are still being taken down"
        )
        if self.blocklist is None:
            lines = "a text file of url:, domain:, hash: and sha256: lines"
            safe = ", which may be empty as long as nothing was reported" if self.shape.safe else ""
            yield Invalid("blocklist", f"is missing, but {why}", f"give the URI of {lines}{safe}, and its SHA-256")
        elif not self.shape.safe:
            yield Invalid("blocklist", f"is empty, but {why}", "list what was removed, or use a research-safe set")

    @property
    def shape(self) -> Preset:
        """What the preset states."""
        return PRESETS[self.preset]

    @property
    def label(self) -> str | None:
        """Language of rows without a label."""
        return self.shape.language if self.language is None else self.language

    @property
    def sizes_are_swapped(self) -> bool:
        return self.shape.swapped_sizes if self.swapped_sizes is None else self.swapped_sizes
