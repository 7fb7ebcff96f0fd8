"""What a header states about an image."""

from __future__ import annotations

from dataclasses import dataclass

from altdiffusion.curation.config.store import Format
from altdiffusion.curation.images.profile import ColorTag


@dataclass(frozen=True, kw_only=True)
class Header:
    """An image as its header describes it. Width and height are in pixels, as coded."""

    format: Format
    width: int
    height: int
    plain: bool
    """Whether OpenCV decodes it as it is; else Pillow does: animations, CMYK, GIF, the formats that `formats` adds."""
    orientation: int = 1
    """EXIF's orientation of what OpenCV decodes: 1 is upright; from 5 on, width and height are swapped."""
    grey: bool = False
    """Whether it is coded without colours: a JPEG of one component, a PNG of grey, a monochrome AVIF."""
    tag: ColorTag | None = None
    """Where the file states what its colours are, if it does."""
    key: tuple[int, ...] | None = None
    """The grey or the colour (red, green, blue) that is transparent in a PNG, in the file's own depth."""
    depth: int = 8
    """Bits per sample."""
    animated: bool = False
    """Whether a PNG is an animation."""
