"""The check of an image's header before any decoder sees the image.

Formats are recognised by their magic bytes, never by Content-Type or name. Sides and pixels come from the header, so
that a bomb of 900 megapixels costs nothing. A file whose structure ends early is `truncated`. Nothing here decodes:
this runs in the process that has network and disk; the decoder (`decoder_process`) is a process of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from altdiffusion.curation.config import StoreConfig
from altdiffusion.curation.config.store import Format
from altdiffusion.curation.images import containers, exif
from altdiffusion.curation.images.header import Header
from altdiffusion.curation.images.profile import ColorTag, Span
from altdiffusion.curation.rejects import DIMS, FORMAT, NOT_IMAGE, TOO_MANY_PIXELS, TRUNCATED, Refused

_OTHER_FORMATS = (
    (b"8BPS", "psd"), (b"%!PS", "eps"), (b"II+\x00", "bigtiff"), (b"MM\x00+", "bigtiff"),
    (b"%PDF", "pdf"), (b"\x00\x00\x00\x0cJXL ", "jxl"), (b"#?RADIANCE", "hdr"),
    (b"\xc5\xd0\xd3\xc6", "eps"), (b"\x00\x00\x01\x00", "ico"), (b"\xff\x0a", "jxl"),
    (b"\x00\x00\x00\x0cjP  ", "jp2"), (b"\xffO\xffQ", "jp2"), (b"qoif", "qoi"), (b"v/1\x01", "exr"),
)  # fmt: skip
_PNG = b"\x89PNG\r\n\x1a\n"
_ICC = b"ICC_PROFILE\x00"
_AVIF_BRANDS = (b"avif", b"avis")


def inspect(body: bytes, config: StoreConfig) -> Header:
    """Return the header of an image that may be decoded.

    Raises:
        Refused: not_image, format, truncated, too_many_pixels, dims.
    """
    format = _format(body)
    if format not in config.formats:
        raise Refused(FORMAT, format)
    header = read_header(body)
    shown = f"{header.width}x{header.height}"
    short, long = sorted((header.width, header.height))
    if short * long > config.max_pixels:
        raise Refused(TOO_MANY_PIXELS, shown)
    if short < config.min_side or long > config.max_side or long > config.max_aspect * short:
        raise Refused(DIMS, shown)
    return header


def read_header(body: bytes) -> Header:
    """Read format and size, and check completeness, from the structure alone.

    Raises:
        Refused: not_image, format (an image of a kind that is never read), truncated, dims (no extent).
    """
    read = _READERS[_format(body)]
    try:
        header = read(body)
    except (struct.error, IndexError) as error:
        raise Refused(TRUNCATED, "header ends early") from error
    if header.width < 1 or header.height < 1:
        raise Refused(DIMS, f"{header.width}x{header.height}")
    return header


def _format(body: bytes) -> Format:
    """Recognise a format by its magic bytes."""
    if body.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if body.startswith(_PNG):
        return "png"
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return "webp"
    if body[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if body[4:8] == b"ftyp" and _is_avif(body):
        return "avif"
    if body[:4] in (b"II*\x00", b"MM\x00*"):
        return "tiff"
    if body.startswith(b"BM"):
        return "bmp"
    raise _other(body)


def _is_avif(body: bytes) -> bool:
    """Return whether AVIF is the major brand or a compatible one; HEIC uses the same container for another codec."""
    brands = body[8:12] + body[16 : min(int.from_bytes(body[:4], "big"), 256)]
    return any(brands[at : at + 4] in _AVIF_BRANDS for at in range(0, len(brands), 4))


def _other(body: bytes) -> Refused:
    for magic, name in _OTHER_FORMATS:
        if body.startswith(magic):
            return Refused(FORMAT, name)
    if body[4:8] == b"ftyp":  # which codec it is of is in the brands that follow
        short = len(body) < max(12, int.from_bytes(body[:4], "big"))
        return Refused(TRUNCATED, "the list of brands is cut off") if short else Refused(FORMAT, "heif")
    head = body[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"<svg") or (head.startswith(b"<?xml") and b"<svg" in head):
        return Refused(FORMAT, "svg")
    return Refused(NOT_IMAGE, f"{len(body)} bytes" if not head.startswith(b"<") else "html or xml")


def _jpeg(body: bytes) -> Header:
    """Walk the segments to the frame header (ITU-T T.81 B.2), then look for the end marker behind the scan."""
    at, size, components, orientation = 2, None, 0, 1
    profile: list[tuple[int, int, Span]] = []
    while True:
        while body[at] == 0xFF and body[at + 1] == 0xFF:
            at += 1
        if body[at] != 0xFF:
            raise Refused(NOT_IMAGE, "jpeg without markers")
        marker = body[at + 1]
        if marker == 0xD9:
            raise Refused(TRUNCATED, "jpeg without scan")
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            at += 2
            continue
        (length,) = struct.unpack_from(">H", body, at + 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, components = struct.unpack_from(">HHB", body, at + 5)
            size = (width, height)
        elif marker == 0xE1 and body[at + 4 : at + 10] == b"Exif\x00\x00" and orientation == 1:
            orientation = exif.orientation(body[at + 4 : at + 2 + length])
        elif marker == 0xE2 and body[at + 4 : at + 16] == _ICC and length >= 16:
            number, count = body[at + 16], body[at + 17]
            profile.append((number, count, (at + 18, at + 2 + length)))
        at += 2 + length
        if marker == 0xDA:
            break
    if size is None:
        raise Refused(NOT_IMAGE, "jpeg without frame")
    if body.rfind(b"\xff\xd9", at) < 0:
        raise Refused(TRUNCATED, "jpeg without end")
    return Header(
        format="jpg",
        width=size[0],
        height=size[1],
        plain=components in (1, 3),
        orientation=orientation,
        grey=components == 1,
        tag=ColorTag(profile=_in_order(profile)) if profile else None,
    )


def _in_order(pieces: list[tuple[int, int, Span]]) -> tuple[Span, ...]:
    """Return a profile's pieces (number, of how many, where; ICC.1 B.4) in order; none if they are not complete."""
    ordered = sorted(pieces)
    whole = [number for number, _, _ in ordered] == list(range(1, len(ordered) + 1))
    same = all(count == len(ordered) for _, count, _ in ordered)
    return tuple(span for _, _, span in ordered) if whole and same else ()


def _png(body: bytes) -> Header:
    """Walk the chunks (ISO/IEC 15948): each must be within the file, up to IEND."""
    at = 8
    length, kind = struct.unpack_from(">I4s", body, at)
    if kind != b"IHDR" or length != 13:
        raise Refused(NOT_IMAGE, "png without IHDR")
    width, height, depth, colors = struct.unpack_from(">IIBB", body, at + 8)
    before: dict[bytes, Span] = {}  # the first chunk of each kind in front of the pixels, where colours are stated
    turn = None
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", body, at)
        if at + 12 + length > len(body):
            raise Refused(TRUNCATED, f"png ends in {kind!r}")
        if b"IDAT" not in before:
            before.setdefault(kind, (at + 8, at + 8 + length))
        if kind == b"eXIf" and turn is None:
            turn = exif.orientation(body[at + 8 : at + 8 + length])
        at += 12 + length
    start, stop = before.get(b"tRNS", (0, 0))
    keyed = colors in (0, 2) and stop - start == (2 if colors == 0 else 6)
    return Header(
        format="png",
        width=width,
        height=height,
        plain=True,
        orientation=turn or 1,
        grey=colors in (0, 4),
        tag=_png_colors(body, before),
        key=struct.unpack_from(">H" if colors == 0 else ">3H", body, start) if keyed else None,
        depth=depth,
        animated=b"acTL" in before,
    )


def _png_colors(body: bytes, chunks: dict[bytes, Span]) -> ColorTag | None:
    """Return what counts: cICP before iCCP before sRGB before gAMA and cHRM (PNG, third edition, 4.3)."""
    start, stop = chunks.get(b"cICP", (0, 0))
    if stop - start == 4:
        return ColorTag(code_points=(body[start], body[start + 1]))
    if b"iCCP" in chunks:
        return ColorTag(profile=(chunks[b"iCCP"],), packed=True)
    if b"sRGB" in chunks:
        return ColorTag(srgb=True)
    gamma, primaries = chunks.get(b"gAMA", (0, 0)), chunks.get(b"cHRM", (0, 0))
    stated = gamma[1] - gamma[0] == 4, primaries[1] - primaries[0] == 32
    if not any(stated):
        return None
    return ColorTag(
        gamma=struct.unpack_from(">I", body, gamma[0])[0] if stated[0] else None,
        chromaticities=struct.unpack_from(">8I", body, primaries[0]) if stated[1] else None,
    )


def _webp(body: bytes) -> Header:
    """Read the RIFF size, then VP8, VP8L or VP8X (RFC 9649)."""
    (size,) = struct.unpack_from("<I", body, 4)
    if size + 8 > len(body):
        raise Refused(TRUNCATED, "webp ends early")
    kind = body[12:16]
    if kind == b"VP8X":
        return _webp_extended(body, size + 8)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", body, 21)
        return Header(format="webp", width=1 + (bits & 0x3FFF), height=1 + (bits >> 14 & 0x3FFF), plain=True)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 26)
        return Header(format="webp", width=width & 0x3FFF, height=height & 0x3FFF, plain=True)
    raise Refused(NOT_IMAGE, "webp without a picture")


def _webp_extended(body: bytes, end: int) -> Header:
    """Read flags and sides, and find the profile (in front of the pixels) and EXIF (behind them)."""
    flags = body[20]
    turn, tag, at = 1, None, 12
    while at + 8 <= end and flags & 0b101000:
        kind, length = struct.unpack_from("<4sI", body, at)
        start, stop = at + 8, at + 8 + length
        if kind == b"EXIF" and flags & 0b1000 and turn == 1:
            turn = exif.orientation(body[start:stop])
        elif kind == b"ICCP" and flags & 0b100000 and tag is None:
            tag = ColorTag(profile=((start, stop),) if stop <= end else ())
        at = stop + (length & 1)
    return Header(
        format="webp",
        width=1 + int.from_bytes(body[24:27], "little"),
        height=1 + int.from_bytes(body[27:30], "little"),
        plain=not flags & 0b10,  # an animation
        orientation=turn,
        tag=tag,
    )


def _gif(body: bytes) -> Header:
    """Walk the blocks (GIF89a) to the end of the first image, which must be within the screen."""
    width, height, flags = struct.unpack_from("<HHB", body, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while True:
        kind = body[at]
        if kind == 0x3B:
            raise Refused(NOT_IMAGE, "gif without a picture")
        if kind == 0x21:
            at = _gif_blocks(body, at + 2)
        elif kind == 0x2C:
            left, top, wide, high, local = struct.unpack_from("<HHHHB", body, at + 1)
            _gif_blocks(body, at + 11 + (3 << (local & 7) + 1 if local & 0x80 else 0))
            return Header(format="gif", width=max(width, left + wide), height=max(height, top + high), plain=False)
        else:
            raise Refused(NOT_IMAGE, "gif with unknown block")


def _gif_blocks(body: bytes, at: int) -> int:
    while body[at]:
        at += 1 + body[at]
    return at + 1


_READERS: dict[Format, Callable[[bytes], Header]] = {
    "jpg": _jpeg, "png": _png, "webp": _webp, "gif": _gif,
    "avif": containers.avif, "bmp": containers.bmp, "tiff": containers.tiff,
}  # fmt: skip
