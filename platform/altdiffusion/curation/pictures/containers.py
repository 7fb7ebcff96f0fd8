"""Headers of the formats that are read where `formats` names them: AVIF, BMP, TIFF."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from altdiffusion.curation.network.addresses import Refused
from altdiffusion.curation.pictures.header import Header
from altdiffusion.curation.pictures.profile import ColorTag

_BOXES = 10_000
_TAGS = {"width": 256, "height": 257, "photometric": 262, "profile": 34675}
# TIFF 6.0 types -> struct's letter; anything else is not needed here.
_TYPES = {1: "B", 3: "H", 4: "I", 7: "B"}
_MIN_IS_WHITE, _MIN_IS_BLACK = 0, 1
_EMBEDDED = int.from_bytes(b"MBED", "big")


def avif(body: bytes) -> Header:
    """Walk the boxes (ISO/IEC 14496-12): each must lie within the file; sizes and colours are properties of items.

    Of several items (the picture, its alpha, a thumbnail, tiles of a grid) the largest extent counts.
    """
    sizes: list[tuple[int, int]] = []
    grey = True
    tag = None
    for kind, start, stop in _walk(body, 0, len(body), path=()):
        if kind == b"ispe":
            sizes.append(struct.unpack_from(">II", body, start + 4))
        elif kind == b"colr":
            tag = _preferred(tag, body, start, stop)
        elif kind == b"av1C":
            grey = grey and bool(body[start + 2] & 0x10)
    if not sizes:
        raise Refused("not_image", "avif without a picture")
    width, height = max(size[0] for size in sizes), max(size[1] for size in sizes)
    return Header(format="avif", width=width, height=height, plain=False, grey=grey, tag=tag)


def _preferred(tag: ColorTag | None, body: bytes, start: int, stop: int) -> ColorTag | None:
    """A profile counts before code points (MIAF, ISO/IEC 23000-22, 7.3.6.4), the first of each before others."""
    kind = body[start : start + 4]
    if kind in (b"prof", b"rICC") and (tag is None or tag.profile is None):
        return ColorTag(profile=((start + 4, stop),))
    if kind == b"nclx" and tag is None:
        primaries, transfer = struct.unpack_from(">HH", body, start + 4)
        return ColorTag(code_points=(primaries, transfer))
    return tag


_INSIDE = {b"meta": 4, b"iprp": 0, b"ipco": 0}
"""Boxes whose content is boxes, and the bytes before these."""


def _walk(body: bytes, at: int, end: int, path: tuple[bytes, ...]) -> Iterator[tuple[bytes, int, int]]:
    """(type, first byte of the content, the byte behind it) of every box, those inside of others too."""
    count = 0
    while at < end and count < _BOXES:
        size, kind = struct.unpack_from(">I4s", body, at)
        start = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", body, start)
            start += 8
        stop = end if size == 0 else at + size
        if stop > end or stop < start:
            raise Refused("truncated", f"avif ends in {kind!r}")
        yield kind, start, stop
        if kind in _INSIDE and len(path) < 4:
            yield from _walk(body, start + _INSIDE[kind], stop, (*path, kind))
        at, count = stop, count + 1


def bmp(body: bytes) -> Header:
    """File header and one of the information headers; a profile may follow the pixels (BITMAPV5HEADER)."""
    _, _, _, offset, size = struct.unpack_from("<IHHII", body, 2)
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", body, 18)
        packing = 0
    else:
        width, height, _, bits, packing = struct.unpack_from("<iiHHI", body, 18)
    height = abs(height)
    if offset > len(body) or (packing in (0, 3) and offset + (width * bits + 31) // 32 * 4 * height > len(body)):
        raise Refused("truncated", "bmp ends early")
    tag = None
    if size >= 124 and struct.unpack_from("<I", body, 14 + 56)[0] == _EMBEDDED:
        start, length = struct.unpack_from("<II", body, 14 + 112)
        inside = 14 + start + length <= len(body)
        tag = ColorTag(profile=((14 + start, 14 + start + length),) if inside else ())
    return Header(format="bmp", width=width, height=height, plain=False, tag=tag)


def tiff(body: bytes) -> Header:
    """The first directory (TIFF 6.0)."""
    order = "<" if body.startswith(b"II") else ">"
    (at,) = struct.unpack_from(order + "I", body, 4)
    (entries,) = struct.unpack_from(order + "H", body, at)
    found = {name: _entry(body, order, at + 2, entries, tag) for name, tag in _TAGS.items()}
    width, height = (found[side] for side in ("width", "height"))
    if width is None or height is None:
        raise Refused("not_image", "tiff without a size")
    tag = None
    if found["profile"] is not None:
        start, stop = found["profile"]
        tag = ColorTag(profile=((start, stop),) if stop <= len(body) else ())
    sides = [_number(body, order, span) for span in (width, height)]
    return Header(format="tiff", width=sides[0], height=sides[1], plain=False, tag=tag)


def _entry(body: bytes, order: str, at: int, entries: int, wanted: int) -> tuple[int, int] | None:
    """Where the values of a tag lie."""
    for number in range(entries):
        place = at + 12 * number
        tag, kind, count = struct.unpack_from(order + "HHI", body, place)
        if tag == wanted and kind in _TYPES:
            length = count * struct.calcsize(_TYPES[kind])
            start = place + 8 if length <= 4 else struct.unpack_from(order + "I", body, place + 8)[0]
            return start, start + length
    return None


def _number(body: bytes, order: str, span: tuple[int, int]) -> int:
    start, stop = span
    if stop > len(body):
        raise Refused("truncated", "tiff ends early")
    return int.from_bytes(body[start:stop], "little" if order == "<" else "big")
