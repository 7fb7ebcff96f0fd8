"""Encoded images: by Pillow, or chunk by chunk for what Pillow does not write."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image

RED = (200, 30, 40)


def encoded(format: str, size: tuple[int, int] = (48, 32), mode: str = "RGB", color: Any = RED, **save: Any) -> bytes:
    """Return an image of one colour."""
    out = io.BytesIO()
    Image.new(mode, size, color).save(out, format, **save)
    return out.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_file(size: tuple[int, int], depth: int, color: int, lines: bytes, *extra: bytes) -> bytes:
    """Return a PNG.

    Args:
        size: width and height in pixels, as the header states them.
        color: the colour type (ISO/IEC 15948, 11.2.2).
        lines: the filtered lines.
        extra: chunks in front of the pixels.
    """
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, color, 0, 0, 0))
    pieces = (head, *extra, chunk(b"IDAT", zlib.compress(lines, 1)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)
