"""What a source is: where its parts lie and what its columns are called."""

from __future__ import annotations

import difflib
import hashlib
import re
from dataclasses import dataclass, field

from altdiffusion.config import operational
from altdiffusion.curation.config.presets import PRESETS, Preset

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_EMPTY = hashlib.sha256(b"").hexdigest()
COLUMNS = (
    "url", "caption", "width", "height", "similarity", "source_language", "sample_id", "pwatermark", "punsafe",
    "aesthetic", "expected_hash", "sha256", "md5", "phash",
)  # fmt: skip
"""What a source may bring, under our names. The last three are hashes of the image, in hex, for `expected_hash`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """A table of links as published, in Parquet parts."""

    name: str
    """Short name; it becomes the `source` column and the name of the source reference."""
    uri: str = operational()
    """Glob of Parquet parts on any fsspec URI; the parts are taken in the order of their names."""
    preset: str = "laion-base"
    """Which set it is: a name of PRESETS, or `columns` for one that `columns` describes."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our name (COLUMNS) -> the source's column; beside LAION's own names, which are found without."""
    ignore: tuple[str, ...] = ()
    """Our names of columns that are not read although the source has them. Without `sample_id` (`hash`), row ids are
    computed as LAION's are."""
    language: str | None = None
    """Label of rows that bring none of their own; null takes the preset's (`en` for the English sets)."""
    swapped_sizes: bool | None = None
    """Whether WIDTH holds the height; null takes the preset's (true for the base releases only)."""
    blocklist: str | None = operational(None)
    """URI of a text file with a `url:`, `domain:`, `hash:` or `sha256:` entry a line: what must never come back."""
    blocklist_sha256: str | None = None
    """SHA-256 (hex) of that file: the list that was applied is part of the result."""
    rows_per_unit: int = 100_000
    """Rows of one unit at most. Not below the rows of the parts' row groups, or these are read several times."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError("name: is not usable; use up to 100 letters, digits, '.', '_' and '-'")
        if self.preset not in PRESETS:
            close = difflib.get_close_matches(self.preset.lower(), PRESETS, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ValueError(f"preset: is no known set; {hint}use one of {', '.join(PRESETS)}")
        if self.rows_per_unit < 1:
            raise ValueError("rows_per_unit: must be at least 1; give e.g. 100000")
        for name, column in self.columns.items():
            if name not in COLUMNS or not column:
                raise ValueError(f"columns: does not map {name!r}; use our names: {', '.join(COLUMNS)}")
        if len(set(self.columns.values())) != len(self.columns):
            raise ValueError("columns: names one column twice; map each once")
        for name in self.ignore:
            if name not in COLUMNS:
                raise ValueError(f"ignore: does not know {name!r}; use our names: {', '.join(COLUMNS)}")
            if name in self.columns:
                raise ValueError(f"ignore: names {name}, which `columns` maps; do one or the other")
            if name in self.shape.requires and name != "sample_id":
                raise ValueError(f"ignore: names {name}, which preset {self.preset} promises; choose another preset")
        missing = [name for name in self.shape.requires if self.shape.mapped and name not in self.columns]
        if missing:
            raise ValueError(f"columns: lacks {', '.join(missing)}; say what this source calls it")
        self._check_blocklist()

    def _check_blocklist(self) -> None:
        if (self.blocklist is None) != (self.blocklist_sha256 is None):
            raise ValueError("blocklist_sha256: blocklist and its SHA-256 belong together; give both or neither")
        if self.blocklist_sha256 is not None and not _SHA256.fullmatch(self.blocklist_sha256):
            raise ValueError("blocklist_sha256: is not 64 hex digits; give the output of sha256sum")
        if not self.shape.published or (self.blocklist is not None and self.blocklist_sha256 != _EMPTY):
            return
        why = (
            f"{self.preset} is a real set, and links of such sets were found to lead to illegal pictures (Re-LAION-5B "
            "removed 2,236 from LAION-5B) and are still being taken down"
        )
        if self.blocklist is None:
            lines = "a text file of url:, domain:, hash: and sha256: lines"
            safe = ", which may be empty as long as nothing was reported" if self.shape.safe else ""
            raise ValueError(f"blocklist: is missing, but {why}; give the URI of {lines}{safe}, and its SHA-256")
        if not self.shape.safe:
            raise ValueError(f"blocklist: is empty, but {why}; list what was removed, or use a research-safe set")

    @property
    def shape(self) -> Preset:
        """What the preset says."""
        return PRESETS[self.preset]

    @property
    def label(self) -> str | None:
        """Language of rows that bring no label."""
        return self.shape.language if self.language is None else self.language

    @property
    def sizes_are_swapped(self) -> bool:
        return self.shape.swapped_sizes if self.swapped_sizes is None else self.swapped_sizes
