"""What a picture is, read from its header before any decoder sees it.

Formats are told by their magic bytes, never by Content-Type or name. Sides and pixels come from the header, so that a
bomb of 900 megapixels costs nothing; a file whose structure ends early is `truncated`. Nothing here decodes: it runs
in the process that holds the network and the disk, while the decoder (`decode`) is a process of its own.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from altdiffusion.curation.config import DownloadConfig
from altdiffusion.curation.network.addresses import Refused

Format = Literal["jpg", "png", "webp", "gif"]
_OTHER_FORMATS = (
    (b"BM", "bmp"), (b"II*\x00", "tiff"), (b"MM\x00*", "tiff"), (b"8BPS", "psd"), (b"%!PS", "eps"),
    (b"%PDF", "pdf"), (b"\x00\x00\x00\x0cJXL ", "jxl"), (b"#?RADIANCE", "hdr"),
    (b"\xc5\xd0\xd3\xc6", "eps"), (b"\x00\x00\x01\x00", "ico"), (b"\xff\x0a", "jxl"),
    (b"\x00\x00\x00\x0cjP  ", "jp2"), (b"\xffO\xffQ", "jp2"), (b"qoif", "qoi"), (b"v/1\x01", "exr"),
)  # fmt: skip
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, kw_only=True)
class Header:
    """Width and height in pixels as coded."""

    format: Format
    width: int
    height: int
    plain: bool
    """Whether OpenCV decodes it rightly as it is, but for the turn: not 16 bits, CMYK, an animation."""
    orientation: int = 1
    """EXIF's, of a JPEG: 1 is upright, from 5 on width and height change places."""
    grey: bool = False
    """Whether a JPEG has one component."""


def inspect(body: bytes, config: DownloadConfig) -> Header:
    """The header of a picture that may be decoded.

    Raises:
        Refused: not_image, format, truncated, too_many_pixels, dims.
    """
    header = read_header(body)
    shown = f"{header.width}x{header.height}"
    short, long = sorted((header.width, header.height))
    if short * long > config.max_pixels:
        raise Refused("too_many_pixels", shown)
    if short < config.min_side or long > config.max_side or long > config.max_aspect * short:
        raise Refused("dims", shown)
    return header


def read_header(body: bytes) -> Header:
    """Format, size and completeness, from structure alone.

    Raises:
        Refused: not_image, format (an image, but none of the four), truncated, dims (no extent).
    """
    try:
        if body.startswith(b"\xff\xd8\xff"):
            header = _jpeg(body)
        elif body.startswith(_PNG):
            header = _png(body)
        elif body[:4] == b"RIFF" and body[8:12] == b"WEBP":
            header = _webp(body)
        elif body[:6] in (b"GIF87a", b"GIF89a"):
            header = _gif(body)
        else:
            raise _other(body)
    except (struct.error, IndexError) as error:
        raise Refused("truncated", "header ends early") from error
    if header.width < 1 or header.height < 1:
        raise Refused("dims", f"{header.width}x{header.height}")
    return header


def _other(body: bytes) -> Refused:
    for magic, name in _OTHER_FORMATS:
        if body.startswith(magic):
            return Refused("format", name)
    if body[4:8] == b"ftyp":
        return Refused("format", "avif or heif")
    head = body[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"<svg") or (head.startswith(b"<?xml") and b"<svg" in head):
        return Refused("format", "svg")
    return Refused("not_image", f"{len(body)} bytes" if not head.startswith(b"<") else "html or xml")


def _jpeg(body: bytes) -> Header:
    """Walks the segments to the frame header (ITU-T T.81 B.2), then looks for the end marker behind the scan."""
    at, size, components, orientation = 2, None, 0, 1
    while True:
        while body[at] == 0xFF and body[at + 1] == 0xFF:
            at += 1
        if body[at] != 0xFF:
            raise Refused("not_image", "jpeg without markers")
        marker = body[at + 1]
        if marker == 0xD9:
            raise Refused("truncated", "jpeg without scan")
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            at += 2
            continue
        (length,) = struct.unpack_from(">H", body, at + 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, components = struct.unpack_from(">HHB", body, at + 5)
            size = (width, height)
        elif marker == 0xE1 and body[at + 4 : at + 10] == b"Exif\x00\x00" and orientation == 1:
            orientation = _orientation(body[at + 10 : at + 2 + length])
        at += 2 + length
        if marker == 0xDA:
            break
    if size is None:
        raise Refused("not_image", "jpeg without frame")
    if body.rfind(b"\xff\xd9", at) < 0:
        raise Refused("truncated", "jpeg without end")
    return Header(
        format="jpg",
        width=size[0],
        height=size[1],
        plain=components in (1, 3),
        orientation=orientation,
        grey=components == 1,
    )


def _orientation(tiff: bytes) -> int:
    """EXIF orientation (tag 274) of the first directory; 1 where there is none or it is broken."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (offset,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, offset)
        for entry in range(min(entries, 256)):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, offset + 2 + 12 * entry)
            if tag == 274 and kind == 3:
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _png(body: bytes) -> Header:
    """Walks the chunks (ISO/IEC 15948): each must lie within the file, up to IEND."""
    at, plain = 8, True
    length, kind = struct.unpack_from(">I4s", body, at)
    if kind != b"IHDR" or length != 13:
        raise Refused("not_image", "png without IHDR")
    width, height, depth = struct.unpack_from(">IIB", body, at + 8)
    plain = depth != 16
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", body, at)
        if at + 12 + length > len(body):
            raise Refused("truncated", f"png ends in {kind!r}")
        plain = plain and kind not in (b"acTL", b"eXIf")
        at += 12 + length
    return Header(format="png", width=width, height=height, plain=plain)


def _webp(body: bytes) -> Header:
    """RIFF size, then VP8, VP8L or VP8X (RFC 9649)."""
    (size,) = struct.unpack_from("<I", body, 4)
    if size + 8 > len(body):
        raise Refused("truncated", "webp ends early")
    kind = body[12:16]
    if kind == b"VP8X":
        flags = body[20]
        width = 1 + int.from_bytes(body[24:27], "little")
        height = 1 + int.from_bytes(body[27:30], "little")
        return Header(format="webp", width=width, height=height, plain=not flags & 0b1010)  # EXIF, animation
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", body, 21)
        return Header(format="webp", width=1 + (bits & 0x3FFF), height=1 + (bits >> 14 & 0x3FFF), plain=True)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 26)
        return Header(format="webp", width=width & 0x3FFF, height=height & 0x3FFF, plain=True)
    raise Refused("not_image", "webp without a picture")


def _gif(body: bytes) -> Header:
    """Walks the blocks (GIF89a) to the end of the first picture, which must lie within the screen."""
    width, height, flags = struct.unpack_from("<HHB", body, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while True:
        kind = body[at]
        if kind == 0x3B:
            raise Refused("not_image", "gif without a picture")
        if kind == 0x21:
            at = _gif_blocks(body, at + 2)
        elif kind == 0x2C:
            left, top, wide, high, local = struct.unpack_from("<HHHHB", body, at + 1)
            _gif_blocks(body, at + 11 + (3 << (local & 7) + 1 if local & 0x80 else 0))
            return Header(format="gif", width=max(width, left + wide), height=max(height, top + high), plain=False)
        else:
            raise Refused("not_image", "gif with unknown block")


def _gif_blocks(body: bytes, at: int) -> int:
    while body[at]:
        at += 1 + body[at]
    return at + 1
