"""JSON from a lake is untrusted input: anyone who can write to the lake controls it.

`read_document` returns an object whose getters check type, form and range, and name the file and the key where a check
fails. A name that becomes a part of a path is read by `digest` or `name`, never as plain text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.refs import Ref
from altdiffusion.storage import files

DIGEST = re.compile(r"[0-9a-f]{64}")
"""SHA-256 in hex, the only form in which a lake names content."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,199}")
"""A single file or folder name, without a separator or leading dot, so that it cannot lead to a parent folder."""
MAX_COUNT = 2**62
"""Larger counts are treated as damage, because sums of them exceed 64 bits."""
_REMEDY = "it was damaged or forged: restore it from a copy, or remove it and run the job that wrote it again"


class Document:
    """A JSON object of a lake.

    Args:
        uri: the file's URI, for messages.
        value: the content of the file.
        remedy: the errors' remedy for a damaged file.

    Raises:
        AltDiffusionError: it is not an object. Every getter raises it where the value is missing or of another form.
    """

    def __init__(self, uri: str, value: Any, *, remedy: str = _REMEDY, at: str = "") -> None:
        self.uri = uri
        self._remedy = remedy
        self._at = at
        if not isinstance(value, dict):
            raise self._error(f"holds {_shown(value)} where an object is required")
        self.value: dict[str, Any] = value

    def _error(self, problem: str) -> AltDiffusionError:
        where = f", {self._at}" if self._at else ""
        return AltDiffusionError(f"file {self.uri}{where}", f"is damaged: it {problem}", self._remedy)

    def wrong(self, key: str, needed: str) -> AltDiffusionError:
        """Return the error for a missing or wrong value; `needed` describes the right one."""
        if key not in self.value:
            return self._error(f"lacks {key!r}")
        return self._error(f"gives {key} as {_shown(self.value[key])} where {needed} is required")

    def text(self, key: str, form: re.Pattern[str] | None = None, *, needed: str = "a text") -> str:
        """Return a text, which must match `form` if that is given. A NUL is refused: no path can hold one."""
        value = self.value.get(key)
        if not isinstance(value, str) or "\0" in value or (form is not None and not form.fullmatch(value)):
            raise self.wrong(key, needed)
        return value

    def digest(self, key: str) -> str:
        """Return a SHA-256 in hex."""
        return self.text(key, DIGEST, needed="a SHA-256 in hex")

    def name(self, key: str) -> str:
        """Return a single file or folder name."""
        return self.text(key, NAME, needed="a plain name")

    def count(self, key: str, default: int | None = None) -> int:
        """Return an integer from 0 to MAX_COUNT."""
        if default is not None and key not in self.value:
            return default
        value = self.value.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_COUNT:
            raise self.wrong(key, "a count")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number."""
        if default is not None and key not in self.value:
            return default
        value = self.value.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            raise self.wrong(key, "a finite number")
        return float(value)

    def flag(self, key: str) -> bool:
        """Return true or false."""
        value = self.value.get(key)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts."""
        value = self.value.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "a list of texts")
        return tuple(value)

    def refs(self, key: str) -> tuple[str, ...]:
        """Return a list of references, each of the form kind:name@digest."""
        refs = self.texts(key)
        for text in refs:
            try:
                Ref.parse(text)
            except AltDiffusionError:
                raise self.wrong(key, "a list of references kind:name@digest") from None
        return refs

    def counts(self, key: str) -> dict[str, int]:
        """Return a mapping of texts to counts."""
        inner = self.object(key)
        found = inner.value
        if set(map(type, found.values())) == {int} and min(found.values()) >= 0 and max(found.values()) <= MAX_COUNT:
            return dict(found)  # a record has a hundred counts, and a lake hundreds of thousands of records
        return {name: inner.count(name) for name in found}  # names the one that is wrong

    def object(self, key: str) -> Document:
        """Return an object within this one."""
        if not isinstance(self.value.get(key), dict):
            raise self.wrong(key, "an object")
        return Document(self.uri, self.value[key], remedy=self._remedy, at=f"{self._at}.{key}".lstrip("."))

    def objects(self, key: str) -> Iterator[Document]:
        """Yield the objects of a list in order."""
        value = self.value.get(key)
        if not isinstance(value, list):
            raise self.wrong(key, "a list of objects")
        for place, item in enumerate(value):
            yield Document(self.uri, item, remedy=self._remedy, at=f"{self._at}.{key}.{place}".lstrip("."))


def read_document(uri: str, *, remedy: str = _REMEDY) -> Document:
    """Return the object that a JSON file of a lake holds.

    Raises:
        FileNotFoundError: the file is not there.
        AltDiffusionError: it is not JSON, or is not an object.
    """
    return parse_document(uri, files.read_bytes(uri), remedy=remedy)


def parse_document(uri: str, data: bytes, *, remedy: str = _REMEDY) -> Document:
    """Return the object that the content of a JSON file of a lake means.

    Raises:
        AltDiffusionError: it is not JSON, or is not an object.
    """
    return Document(uri, files.parse_json(uri, data, strict=True), remedy=remedy)


def optional_document(uri: str) -> Document | None:
    """Return the object that a JSON file of a lake holds, or None where the file is not there."""
    try:
        return read_document(uri)
    except FileNotFoundError:
        return None


def of_mapping(uri: str, value: Mapping[str, Any], *, remedy: str = _REMEDY) -> Document:
    """Return a mapping that was read by other means as a checked object."""
    return Document(uri, dict(value), remedy=remedy)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of floats
        return False


def _shown(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_COUNT:
        return "a huge number"  # Python itself refuses to print thousands of digits
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
