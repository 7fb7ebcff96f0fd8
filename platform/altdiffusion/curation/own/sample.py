"""An image of a source on its way into a dataset, with what the source states about it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from altdiffusion.curation.rejects import NO_CAPTION, Refused

SCHEME = "own"
IMAGE_EXTENSIONS = frozenset(
    {
        "jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "avif", "bmp", "tif", "tiff", "heic", "heif", "jxl", "jp2",
        "j2k", "psd", "svg", "ico", "exr", "hdr", "qoi",
    }
)  # fmt: skip
"""Extensions (lower case) of files that are images. Those that cannot be decoded are rejected, not passed over."""


_HALVES = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption as the source has it, and the language that the source states for it."""

    text: str
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image with its captions, or the reason why it is not taken."""

    name: str
    """Its name within the source, NFC, with `/` between folders."""
    body: bytes | None = None
    captions: Sequence[Caption] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What the source states about it: metadata, JSON or the columns of a table. Keys are lower case."""
    refused: Refused | None = None


def nfc(name: str) -> str:
    """Return a file's name as it is compared: macOS and Linux store the same name in two forms of Unicode.

    Bytes that are not UTF-8, which Python holds as half characters, become `%FF`.
    """
    return _HALVES.sub(lambda half: f"%{ord(half[0]) - 0xDC00:02X}", unicodedata.normalize("NFC", name))


def own_url(source: str, name: str) -> str:
    """Return what an image without an address has as its `url`; it does not depend on where the source is."""
    return f"{SCHEME}://{source}/{quote(nfc(name), safe='/')}"


def is_image_name(name: str) -> bool:
    """Return whether a file's extension is that of an image."""
    return "." in name and name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def is_unsafe(name: str) -> bool:
    """Return whether a path would lead out of its folder, on this or another system."""
    parts = re.split(r"[/\\]", name)
    return not name or "\0" in name or name[0] in "/\\" or ".." in parts or re.match(r"[A-Za-z]:", name) is not None


def lower_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with lower-case names, without what is null."""
    return {str(key).lower(): value for key, value in values.items() if value is not None}


def field_captions(
    fields: Mapping[str, Any], columns: Sequence[str], language_column: str | None, languages: Sequence[str]
) -> list[Caption]:
    """Return the captions in the columns of a row, in the order of `columns`.

    Args:
        fields: a row; keys are lower case.
        columns: the names of columns that may hold a caption, or a list of captions.
        language_column: column of the language; None looks for `language` and `lang`.
        languages: codes that may end a column's name: `text_uk`.
    """
    places = [language_column.lower()] if language_column is not None else ["language", "lang"]
    labels = next((fields[place] for place in places if fields.get(place) not in (None, "")), None)
    found: list[Caption] = []
    for column in columns:
        name = column.lower()
        texts = _texts(fields.get(name))
        each = labels if isinstance(labels, (list, tuple)) else [labels] * len(texts)
        if len(each) != len(texts):
            each = [None] * len(texts)
        found += [Caption(text=text, label=_label(one)) for text, one in zip(texts, each, strict=True)]
        for code in languages:
            found += [Caption(text=text, label=code) for text in _texts(fields.get(f"{name}_{code}".lower()))]
    return found


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [one for one in values if isinstance(one, str) and one.strip()]


def _label(value: Any) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


def no_caption() -> Refused:
    """Return the refusal of an image without a caption."""
    return Refused(NO_CAPTION)
