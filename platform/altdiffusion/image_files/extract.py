"""What an image file carries: its record and its mark. The file is other people's: everything in it is bounded."""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from altdiffusion.errors import AltDiffusionError
from altdiffusion.image_files.embed import IPTC_NAMESPACE, JSON_KEYWORD, MARK, RECORD_NAMESPACE
from altdiffusion.image_files.record import MAX_BYTES, FileRecord, parse_record

MAX_FILE_BYTES = 1 << 28
MAX_PIXELS = 100_000_000
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"


@dataclass(frozen=True, kw_only=True, slots=True)
class Carried:
    """What is in a file besides its pixels."""

    record: FileRecord | None = None
    marked: bool = False
    """Whether the file has the IPTC mark `trainedAlgorithmicMedia`."""
    problem: str = ""
    """Why what looks like a record cannot be used."""


def read_file(path: str) -> bytes:
    """Return the bytes of a local file.

    Raises:
        AltDiffusionError: it cannot be read, or is larger than an image of this platform.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size <= MAX_FILE_BYTES:
                return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise AltDiffusionError(
            f"file {path}", f"cannot be read ({error.strerror})", "check path and rights"
        ) from error
    raise AltDiffusionError(f"file {path}", f"has more than {MAX_FILE_BYTES:,} bytes", "give an image file")


def read_carried(data: bytes) -> Carried:
    """Return the record and the mark of a PNG, JPEG or WebP file; other files carry nothing."""
    info = _info(data)
    text, packet = info.get(JSON_KEYWORD), info.get("xmp")
    marked, in_packet = _of_packet(packet)
    text = str(text) if isinstance(text, str) else in_packet
    if text is None:
        return Carried(marked=marked)
    try:
        return Carried(record=parse_record(text), marked=marked)
    except AltDiffusionError as error:
        return Carried(marked=marked, problem=error.problem)


def read_pixels(data: bytes) -> npt.NDArray[np.uint8] | None:
    """Return the pixels of an image, uint8 [H, W, 3] RGB; None if it cannot be decoded or is too large."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > MAX_PIXELS:
                    return None
                return np.asarray(image.convert("RGB"))
    except Exception:  # on bytes that are not an image, Pillow raises whatever its reader fails with
        return None


def _info(data: bytes) -> dict[str, Any]:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
                return {str(key): value for key, value in image.info.items()}
    except Exception:  # as above: such a file carries nothing that can be read
        return {}


def _of_packet(packet: Any) -> tuple[bool, str | None]:
    """Return whether an XMP packet has the mark, and its record."""
    if not isinstance(packet, bytes) or len(packet) > 2 * MAX_BYTES:
        return False, None
    try:
        text = packet.decode("utf-8")
        if "<!" in text:  # no document type, so no entities that expand
            return False, None
        root = ElementTree.fromstring(text)
    except (UnicodeDecodeError, ElementTree.ParseError, RecursionError):
        return False, None
    marked, record = False, None
    for description in root.iter(_RDF):
        for name, value in _properties(description):
            marked |= name == f"{{{IPTC_NAMESPACE}}}DigitalSourceType" and value.strip() == MARK
            if name == f"{{{RECORD_NAMESPACE}}}record" and record is None:
                record = value
    return marked, record


def _properties(description: Any) -> list[tuple[str, str]]:
    """Return name and value of each property; other programs may write a property as an attribute."""
    return [*description.attrib.items(), *((child.tag, child.text or "") for child in description)]
