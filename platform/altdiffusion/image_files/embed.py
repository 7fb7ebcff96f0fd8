"""A record inside an image file, where other programs look: text chunks of PNG; EXIF of JPEG and WebP; XMP of all.

| file      | where                              | what                                              |
|-----------|------------------------------------|---------------------------------------------------|
| PNG       | iTXt `altdiffusion`                | the record as JSON, which is read back            |
| PNG       | iTXt `parameters`                  | text in the form of AUTOMATIC1111's web interface |
| JPEG, WebP| EXIF ImageDescription, UserComment | the prompt; the same text                         |
| all       | XMP                                | the IPTC mark, and the record as JSON             |

XMP is an RDF document (ISO 16684-1); the mark is `Iptc4xmpExt:DigitalSourceType` of the IPTC Photo Metadata Standard.
"""

from __future__ import annotations

import re
import struct
from typing import Any
from xml.sax.saxutils import escape

from altdiffusion.image_files.record import FileRecord

MARK = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's term for media that a trained model made."""
IPTC_NAMESPACE = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
RECORD_NAMESPACE = "urn:altdiffusion:ns:"
JSON_KEYWORD, TEXT_KEYWORD, XMP_KEYWORD = "altdiffusion", "parameters", "XML:com.adobe.xmp"
_SAMPLERS = {"ddim": "DDIM", "dpmpp": "DPM++ 2M", "euler": "Euler", "pndm": "PLMS", "unipc": "UniPC"}
"""The web interface's names of our samplers."""
_UNPRINTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    f'<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="{IPTC_NAMESPACE}" xmlns:altdiffusion="{RECORD_NAMESPACE}">'
    f"<Iptc4xmpExt:DigitalSourceType>{MARK}</Iptc4xmpExt:DigitalSourceType>"
    "<altdiffusion:record>%s</altdiffusion:record>"
    '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)


def save_options(record: FileRecord, image_format: str) -> dict[str, Any]:
    """Return the arguments of Pillow's `save` that put a record into a file.

    Args:
        image_format: png, jpg or webp.
    """
    if image_format != "png":
        return {"exif": exif(record), "xmp": xmp(record)}
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_itxt(TEXT_KEYWORD, readable(record))
    chunks.add_itxt(JSON_KEYWORD, record.to_json())
    chunks.add_itxt(XMP_KEYWORD, xmp(record).decode())
    return {"pnginfo": chunks}


def readable(record: FileRecord) -> str:
    """Return the record for people, as AUTOMATIC1111's web interface writes it."""
    image = record.image
    name = record.model.partition(":")[2].partition("@")[0]
    sampler = _SAMPLERS.get(image["sampler"], image["sampler"])
    lines = [image["prompt"]]
    if image["negative_prompt"]:
        lines.append(f"Negative prompt: {image['negative_prompt']}")
    lines.append(
        f"Steps: {image['steps']}, Sampler: {sampler}, CFG scale: {image['guidance_scale']:g}, Seed: {image['seed']}, "
        f"Size: {image['width']}x{image['height']}, Model hash: {record.content[:10]}, Model: {name}"
    )
    return _UNPRINTED.sub("\ufffd", "\n".join(lines))


def xmp(record: FileRecord) -> bytes:
    """Return an XMP packet, UTF-8, with the mark and the record."""
    return (_XMP % escape(record.to_json())).encode()


def exif(record: FileRecord) -> bytes:
    """Return EXIF: big-endian TIFF directories with ImageDescription (UTF-8) and UserComment (UTF-16)."""
    prompt = _UNPRINTED.sub("\ufffd", record.image["prompt"]).encode() + b"\0"
    comment = b"UNICODE\0" + readable(record).encode("utf-16-be")
    description, user_comment, sub_directory = 0x010E, 0x9286, 0x8769
    ascii_type, long_type, undefined_type = 2, 4, 7
    first, length = 8, 2 + 2 * 12 + 4  # place and size of the first directory
    prompt = prompt.ljust(6, b"\0")  # a value of up to 4 bytes would be in the entry itself
    second = first + length + len(prompt) + len(prompt) % 2
    comment_at = second + 2 + 12 + 4
    return b"".join(
        (
            b"Exif\0\0MM\0\x2a" + struct.pack(">I", first),
            struct.pack(">H", 2),
            struct.pack(">HHII", description, ascii_type, len(prompt), first + length),
            struct.pack(">HHII", sub_directory, long_type, 1, second),
            struct.pack(">I", 0),
            prompt + b"\0" * (len(prompt) % 2),
            struct.pack(">H", 1),
            struct.pack(">HHII", user_comment, undefined_type, len(comment), comment_at),
            struct.pack(">I", 0),
            comment,
        )
    )
