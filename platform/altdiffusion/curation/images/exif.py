"""How an image is to be turned, as its EXIF states."""

from __future__ import annotations

import struct

_PREFIX = b"Exif\x00\x00"
_ORIENTATION = 274
# Whole numbers of TIFF 6.0: BYTE, SHORT, LONG, SBYTE, SSHORT, SLONG. The standard's is SHORT; some write another.
_WHOLE = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}


def orientation(exif: bytes) -> int:
    """Return the orientation (tag 274) of the first directory; 1 (upright) where there is none or it is broken.

    Args:
        exif: a TIFF stream in either byte order, with or without the prefix that JPEG puts in front of it.
    """
    tiff = exif.removeprefix(_PREFIX)
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (offset,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, offset)
        for entry in range(min(entries, 256)):
            at = offset + 2 + 12 * entry
            tag, kind = struct.unpack_from(order + "HH", tiff, at)
            if tag == _ORIENTATION and kind in _WHOLE:
                (value,) = struct.unpack_from(order + _WHOLE[kind], tiff, at + 8)
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
