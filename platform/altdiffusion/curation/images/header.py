"""What a header says of an image."""

from __future__ import annotations

from dataclasses import dataclass

from altdiffusion.curation.config.download import Format
from altdiffusion.curation.images.profile import ColorTag


@dataclass(frozen=True, kw_only=True)
class Header:
    """Width and height in pixels as coded."""

    format: Format
    width: int
    height: int
    plain: bool
    """Whether OpenCV decodes it as it is; else Pillow does: animations, CMYK, GIF, the formats that `formats` adds."""
    orientation: int = 1
    """EXIF's, of what OpenCV decodes: 1 is upright, from 5 on width and height change places."""
    grey: bool = False
    """Whether it is coded without colours: a JPEG of one component, a PNG of grey, a monochrome AVIF."""
    tag: ColorTag | None = None
    """Where it says what its colours are, if it does."""
    key: tuple[int, ...] | None = None
    """The grey or colour (red, green, blue) of a PNG that is transparent, in the file's own depth."""
    depth: int = 8
    """Bits of a sample."""
    animated: bool = False
    """Whether a PNG is an animation."""
