"""Headers of the formats that are read where `formats` names them: AVIF, BMP, TIFF."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from altdiffusion.curation.images.header import Header
from altdiffusion.curation.images.profile import ColorTag
from altdiffusion.curation.rejects import NOT_IMAGE, TRUNCATED, Refused

_BOXES = 10_000
_WIDTH, _HEIGHT, _PROFILE = 256, 257, 34675
_PIECES = ((273, 279), (324, 325))
"""Tags of the offsets and lengths of strips, and of tiles."""
_TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 5: "Q", 6: "b", 7: "B", 8: "h", 9: "i", 10: "q", 11: "f", 12: "d"}
"""TIFF 6.0's types -> struct's format character of that size."""
_EMBEDDED = int.from_bytes(b"MBED", "big")


def avif(body: bytes) -> Header:
    """Walk the boxes (ISO/IEC 14496-12): each must be within the file; sizes and colours are properties of items.

    Of several items (the image, its alpha, a thumbnail, tiles of a grid) the largest extent counts.
    """
    sizes: list[tuple[int, int]] = []
    grey, pixels = True, False
    tag = None
    for kind, start, stop in _walk(body, 0, len(body), path=()):
        if kind == b"ispe":
            sizes.append(struct.unpack_from(">II", body, start + 4))
        elif kind == b"colr":
            tag = _preferred(tag, body, start, stop)
        elif kind in (b"mdat", b"idat"):
            pixels = True
        elif kind == b"av1C":
            grey = grey and bool(body[start + 2] & 0x10)
    if not sizes:
        raise Refused(NOT_IMAGE, "avif without a picture")
    if not pixels:
        raise Refused(TRUNCATED, "avif ends before its pixels")
    width, height = max(size[0] for size in sizes), max(size[1] for size in sizes)
    return Header(format="avif", width=width, height=height, plain=False, grey=grey, tag=tag)


def _preferred(tag: ColorTag | None, body: bytes, start: int, stop: int) -> ColorTag | None:
    """Return the tag that counts: a profile before code points (MIAF, ISO/IEC 23000-22, 7.3.6.4), the first of each."""
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
    """Yield (type, first byte of the content, the byte behind it) for every box, those inside others included."""
    count = 0
    while at < end and count < _BOXES:
        size, kind = struct.unpack_from(">I4s", body, at)
        start = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", body, start)
            start += 8
        stop = end if size == 0 else at + size
        if stop > end or stop < start:
            raise Refused(TRUNCATED, f"avif ends in {kind!r}")
        yield kind, start, stop
        if kind in _INSIDE and len(path) < 4:
            yield from _walk(body, start + _INSIDE[kind], stop, (*path, kind))
        at, count = stop, count + 1


def bmp(body: bytes) -> Header:
    """Read the file header and the information header; a profile may follow the pixels (BITMAPV5HEADER)."""
    _, _, _, offset, size = struct.unpack_from("<IHHII", body, 2)
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", body, 18)
        packing = 0
    else:
        width, height, _, bits, packing = struct.unpack_from("<iiHHI", body, 18)
    height = abs(height)
    if offset > len(body) or (packing in (0, 3) and offset + (width * bits + 31) // 32 * 4 * height > len(body)):
        raise Refused(TRUNCATED, "bmp ends early")
    tag = None
    if size >= 124 and struct.unpack_from("<I", body, 14 + 56)[0] == _EMBEDDED:
        start, length = struct.unpack_from("<II", body, 14 + 112)
        inside = 14 + start + length <= len(body)
        tag = ColorTag(profile=((14 + start, 14 + start + length),) if inside else ())
    return Header(format="bmp", width=width, height=height, plain=False, tag=tag)


def tiff(body: bytes) -> Header:
    """Read the first directory (TIFF 6.0); the strips or tiles that it names must be within the file."""
    order = "<" if body.startswith(b"II") else ">"
    (at,) = struct.unpack_from(order + "I", body, 4)
    (entries,) = struct.unpack_from(order + "H", body, at)
    where: dict[int, tuple[int, int, int]] = {}
    for number, kind, count, start in _entries(body, order, at + 2, entries):
        where.setdefault(number, (kind, count, start))
        if number != _PROFILE and start + count * struct.calcsize(_TYPES[kind]) > len(body):
            raise Refused(TRUNCATED, f"tiff ends in tag {number}")
    sides = [_values(body, order, where, tag) for tag in (_WIDTH, _HEIGHT)]
    if not all(len(side) == 1 for side in sides):
        raise Refused(NOT_IMAGE, "tiff without a size")
    for starts, lengths in _PIECES:
        spans = zip(_values(body, order, where, starts), _values(body, order, where, lengths), strict=False)
        if any(start + length > len(body) for start, length in spans):
            raise Refused(TRUNCATED, "tiff ends in its pixels")
    tag = None
    if _PROFILE in where:
        _, count, start = where[_PROFILE]
        tag = ColorTag(profile=((start, start + count),) if start + count <= len(body) else ())
    return Header(format="tiff", width=sides[0][0], height=sides[1][0], plain=False, tag=tag)


def _entries(body: bytes, order: str, at: int, entries: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (tag, type, number of values, where they begin) for every entry of a known type."""
    for place in range(at, at + 12 * entries, 12):
        tag, kind, count = struct.unpack_from(order + "HHI", body, place)
        if kind in _TYPES:
            inside = count * struct.calcsize(_TYPES[kind]) <= 4
            yield tag, kind, count, place + 8 if inside else struct.unpack_from(order + "I", body, place + 8)[0]


def _values(body: bytes, order: str, where: dict[int, tuple[int, int, int]], tag: int) -> tuple[int, ...]:
    if tag not in where:
        return ()
    kind, count, start = where[tag]
    if kind not in (1, 3, 4):
        raise Refused(NOT_IMAGE, f"tiff whose tag {tag} is not a whole number")
    return struct.unpack_from(f"{order}{count}{_TYPES[kind]}", body, start)
