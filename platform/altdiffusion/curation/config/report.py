"""What the report of a curation shows, how much it reads, and how large it may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from altdiffusion.config import operational
from altdiffusion.constraints import PROBABILITY, Checked, at_least, between


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig(Checked):
    """`report.html`. Counts come from the manifests; what those do not hold is read from a sample of rows."""

    sample_rows: Annotated[int, at_least(1000, "fewer rows show nothing; give e.g. 100000")] = operational(100_000)
    """Rows read per question (labels, sizes, hosts); a version with fewer is read whole, columns only."""
    pictures: Annotated[int, at_least(0)] = operational(6)
    """Accepted images shown per language."""
    picture_side: Annotated[int, between(16, 1024, "give pixels, e.g. 144")] = operational(144)
    """Pixels of the longer side of a shown image, at most."""
    examples: Annotated[int, at_least(0)] = operational(3)
    """Rejected rows shown per reason."""
    hosts: Annotated[int, at_least(0)] = operational(15)
    """Hosts shown."""
    hide_unsafe_from: Annotated[float, PROBABILITY] = operational(0.5)
    """Images with a punsafe (or NSFW score) of at least this are never shown."""
    show_unscored: bool = operational(True)
    """Whether images without any such score may be shown."""
    max_bytes: Annotated[int, at_least(400_000, "the page takes that much without images")] = operational(3_000_000)
    """Bytes of the whole page: fewer images are shown where it would be larger."""
