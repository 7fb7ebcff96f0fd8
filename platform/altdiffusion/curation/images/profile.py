"""What a file states about its colours: an ICC profile, or code points of a colour space.

The header's walk notes where that is (`ColorTag`), in the process that has the network; only the decoder reads,
unpacks and applies it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

from altdiffusion.curation.images import icc

Span = tuple[int, int]
"""First byte and the one behind the last."""
Problem = Literal["broken", "oversized", "unsupported"]
MAX_BYTES = 4 << 20
"""A profile of more bytes is ignored; those of printing presses have up to three million."""


@dataclass(frozen=True, kw_only=True)
class ColorTag:
    """Where a file states its colours. Of several, the first of these fields counts, as in PNG (ISO/IEC 15948)."""

    code_points: tuple[int, int] | None = None
    """Colour primaries and transfer characteristics (ITU-T H.273), of PNG's cICP or AVIF's nclx."""
    profile: tuple[Span, ...] | None = None
    """The pieces of an ICC profile; empty where some are missing."""
    packed: bool = False
    """Whether that is PNG's iCCP: a name, a zero byte, a method, and the profile in zlib's format."""
    srgb: bool = False
    gamma: int | None = None
    """PNG's gAMA: 100,000 / exponent."""
    chromaticities: tuple[int, ...] | None = None
    """PNG's cHRM: x and y of white, red, green and blue, times 100,000."""


def read_profile(body: bytes, tag: ColorTag) -> bytes | Problem | None:
    """Return the ICC profile that a file carries, or one made from what it states; None where that is sRGB.

    A statement that cannot be used is returned as the problem with it.
    """
    if tag.code_points is not None:
        return _of_code_points(*tag.code_points)
    if tag.profile is not None:
        return _embedded(body, tag)
    if tag.srgb or (tag.gamma is None and tag.chromaticities is None):
        return None
    return _of_png(tag)


def _embedded(body: bytes, tag: ColorTag) -> bytes | Problem:
    pieces = tag.profile or ()
    if sum(stop - start for start, stop in pieces) > MAX_BYTES:
        return "oversized"
    profile = b"".join(body[start:stop] for start, stop in pieces)
    if tag.packed:
        name, found, rest = profile.partition(b"\x00")
        if not found or len(name) > 79 or rest[:1] != b"\x00":
            return "broken"
        unpacker = zlib.decompressobj()
        try:
            profile = unpacker.decompress(rest[1:], MAX_BYTES + 1)
        except zlib.error:
            return "broken"
        if len(profile) > MAX_BYTES:
            return "oversized"
        if not unpacker.eof:
            return "broken"
    # ICC.1:2022 7.2: size, and the signature `acsp` at byte 36
    if len(profile) < 132 or profile[36:40] != b"acsp" or int.from_bytes(profile[:4], "big") > len(profile):
        return "broken"
    return profile


def _of_code_points(primaries: int, transfer: int) -> bytes | Problem | None:
    """Return the profile of H.273 code points; 2 is "unspecified", which is sRGB as everywhere on the web."""
    space, curve = icc.PRIMARIES.get(primaries), icc.TRANSFERS.get(transfer)
    if space is None or curve is None:
        return "unsupported"
    return None if (space, curve) == (icc.SRGB, icc.SRGB_CURVE) else icc.matrix_profile(space, curve)


def _of_png(tag: ColorTag) -> bytes | Problem | None:
    space, curve = icc.SRGB, icc.SRGB_CURVE
    if tag.chromaticities is not None:
        x = [value / 100_000 for value in tag.chromaticities]
        space = icc.Space(white=(x[0], x[1]), red=(x[2], x[3]), green=(x[4], x[5]), blue=(x[6], x[7]))
        if not space.spans:
            return "broken"
        if space.near(icc.SRGB):
            space = icc.SRGB
    if tag.gamma is not None:
        if not 10_000 <= tag.gamma <= 1_000_000:
            return "broken"
        # 1 / 2.2 is how PNG writers state sRGB's curve (ISO/IEC 15948, 11.3.2.2)
        if abs(tag.gamma - 45455) > 500:
            curve = 100_000 / tag.gamma
    return None if (space, curve) == (icc.SRGB, icc.SRGB_CURVE) else icc.matrix_profile(space, curve)
