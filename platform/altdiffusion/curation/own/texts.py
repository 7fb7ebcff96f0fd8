"""Caption files: bytes to text, or a refusal that names the byte."""

from __future__ import annotations

import codecs

from altdiffusion.curation.own.sample import Caption
from altdiffusion.curation.rejects import CAPTION_BYTES, Refused

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode_text(body: bytes, encoding: str) -> str:
    """Return the text of a caption file.

    Args:
        encoding: of a file without a byte order mark.

    Raises:
        Refused: caption_bytes.
    """
    stated = next((name for mark, name in _MARKS if body.startswith(mark)), encoding)
    try:
        text = body.decode(stated)
    except UnicodeError as error:
        at = getattr(error, "start", 0)
        raise Refused(CAPTION_BYTES, f"byte {at} is not {stated}; set caption_encoding, or save as UTF-8") from error
    if "\0" in text:
        raise Refused(CAPTION_BYTES, f"it holds zero bytes, as UTF-16 read as {stated} does; save as UTF-8")
    return text


def file_captions(body: bytes, encoding: str) -> list[Caption]:
    """Return the caption that a file holds: its lines are one text; none if it is blank.

    Raises:
        Refused: caption_bytes.
    """
    text = " ".join(decode_text(body, encoding).split())
    return [Caption(text=text)] if text else []
