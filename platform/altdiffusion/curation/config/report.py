"""What the report of a curation shows, and how much it reads and weighs."""

from __future__ import annotations

from dataclasses import dataclass

from altdiffusion.config import operational


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """`report.html`. Counts come from the manifests whole; what they do not hold is read from a sample of rows."""

    sample_rows: int = operational(100_000)
    """Rows read for one question (labels, sizes, hosts); a version with fewer is read whole, columns only."""
    pictures: int = operational(6)
    """Accepted pictures shown for each language."""
    picture_side: int = operational(144)
    """Pixels; the longer side of a shown picture at most."""
    examples: int = operational(3)
    """Rejected rows shown for each reason."""
    hosts: int = operational(15)
    """Hosts shown."""
    hide_unsafe_from: float = operational(0.5)
    """Pictures with a punsafe (or NSFW score) of at least this are never shown."""
    show_unscored: bool = operational(True)
    """Whether pictures without any such score may be shown."""
    max_bytes: int = operational(3_000_000)
    """Of the whole page: fewer pictures are shown when it would be larger."""

    def __post_init__(self) -> None:
        if self.sample_rows < 1000:
            raise ValueError("sample_rows: must be at least 1000 to say anything; give e.g. 100000")
        if not 16 <= self.picture_side <= 1024:
            raise ValueError("picture_side: must be between 16 and 1024 pixels; give e.g. 144")
        if min(self.pictures, self.examples, self.hosts) < 0:
            raise ValueError("pictures, examples, hosts: must not be negative; give 0 to leave a part out")
        if not 0 <= self.hide_unsafe_from <= 1:
            raise ValueError("hide_unsafe_from: is a probability; give a number from 0 to 1, e.g. 0.5")
        if self.max_bytes < 400_000:
            raise ValueError("max_bytes: must be at least 400000, which the page takes without pictures")
