"""What a body is beneath its Content-Encoding: servers name encodings that they did not apply, and apply some unasked.

We ask for none (`Accept-Encoding: identity`). A body that begins as an image does is an image, whatever the header
states; else gzip and deflate are undone, within the cap of bytes; any other name is refused, unless it is not the name
of an encoding at all (`UTF-8`, `none`, `binary`) and a text was asked for.
"""

from __future__ import annotations

import zlib
from typing import Any

from altdiffusion.curation.rejects import CONTENT_ENCODING, TOO_LARGE, TRUNCATED, Refused

_GZIP = frozenset({"gzip", "x-gzip"})
_UNDONE = _GZIP | {"deflate"}
_REAL = frozenset({"br", "zstd", "compress", "x-compress", "exi", "pack200-gzip", "dcb", "dcz", "lzma", "bzip2"})
"""Names of encodings (IANA's, and some in use) that are not undone."""
_AT_MOST = 3
_PIECE = 1 << 14
_IMAGES = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\x00", b"MM\x00*", b"\xff\x0a"),
    b"\x00\x00\x00\x0cJXL ",
)


def is_image(body: bytes) -> bool:
    """Return whether a body begins as an image of any format does: no gzip or deflate stream does."""
    return (
        body.startswith(_IMAGES)
        or (body[:4] == b"RIFF" and body[8:12] == b"WEBP")
        or body[4:8] == b"ftyp"
        or (body[:2] == b"BM" and body[6:10] == bytes(4))
    )


def decoded(body: bytes, encodings: list[str], max_bytes: int, *, text: bool = False) -> bytes:
    """Return the body as it was before its encodings.

    Args:
        encodings: names in lower case, in the order in which they were applied.
        text: a text was asked for, and its first `max_bytes` will do.

    Raises:
        Refused: content_encoding, too_large, truncated.
    """
    names = [name for name in encodings if name != "identity"]
    if not names or is_image(body):
        return body
    if len(names) > _AT_MOST:
        raise Refused(CONTENT_ENCODING, ", ".join(names)[:40])
    for name in reversed(names):
        if name in _UNDONE:
            body = _inflated(body, name, max_bytes, cut=text, may_end=text and len(body) >= max_bytes)
        elif not text or name in _REAL:
            raise Refused(CONTENT_ENCODING, name[:40])
        if is_image(body):
            break
    return body


def _inflated(body: bytes, name: str, max_bytes: int, *, cut: bool, may_end: bool) -> bytes:
    """Return the contents of a gzip file of any number of members, or of a deflate stream."""
    plain = bytearray()
    at = 0
    while at < len(body):
        stream, whole = zlib.decompressobj(wbits=_window(name, body[at : at + 2])), len(plain)
        try:
            at = _one(stream, body, at, plain, max_bytes)
        except zlib.error as error:
            del plain[whole:]
            if whole and name in _GZIP:
                break  # what follows the last member is padding
            raise Refused(CONTENT_ENCODING, f"{name}: {error}"[:80]) from error
        if len(plain) > max_bytes:
            if cut:
                return bytes(plain[:max_bytes])
            raise Refused(TOO_LARGE, f"more than {max_bytes} bytes in {name}")
        if not stream.eof:
            if may_end:
                break
            raise Refused(TRUNCATED, f"{name} ends early")
        if name not in _GZIP:
            break
    return bytes(plain)


def _one(stream: Any, body: bytes, at: int, plain: bytearray, max_bytes: int) -> int:
    """Append what one member or stream holds; return where it ends, or the body.

    It is fed piece by piece: zlib copies what it has been given and does not need, for every member again.
    """
    while at < len(body) and not stream.eof and len(plain) <= max_bytes:
        fed = body[at : at + _PIECE]
        at += len(fed)
        plain += stream.decompress(fed, max_bytes + 1 - len(plain))
        at -= len(stream.unused_data) + len(stream.unconsumed_tail)
    return at


def _window(name: str, body: bytes) -> int:
    """Return zlib's number for the kind of stream; deflate without zlib's header is common (RFC 9110, 8.4.1.2)."""
    if name in _GZIP:
        return zlib.MAX_WBITS | 16
    has_header = len(body) > 1 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
    return zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS
