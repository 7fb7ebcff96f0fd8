"""Rows of a cases file: a prompt, its language, its English text and the image that it describes."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from altdiffusion.errors import AltDiffusionError
from altdiffusion.languages import CODES, language_of, normalised_tag
from altdiffusion.storage import files


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseRow:
    """A prompt of a set."""

    concept: str
    """What prompts in several languages share; a part of their ids."""
    language: str
    """One of the eighteen."""
    prompt: str
    english: str
    image: str | None = None
    """Name or address of the image that the prompt describes; None where there is none."""

    @property
    def id(self) -> str:
        """Name of the prompt, unique in its set: `<concept>-<language>`, as a contact sheet reads it."""
        return f"{self.concept}-{self.language}"

    def to_json(self) -> dict[str, str | bool]:
        """Return the row of a cases file. Nobody knows what a published model has seen, so `seen` is false."""
        row: dict[str, str | bool] = {
            "id": self.id, "concept": self.concept, "language": self.language, "prompt": self.prompt,
            "english": self.english, "seen": False,
        }  # fmt: skip
        return row if self.image is None else {**row, "image": self.image}


def known_language(tag: str) -> str | None:
    """Return the code of one of the eighteen languages for a tag such as `zh-CN` or XTD10's `jp`, else None."""
    code = language_of(normalised_tag(tag) or "")
    code = {"jp": "ja"}.get(code, code)
    return code if code in CODES else None


def plain(text: str) -> str:
    """Return a text on one line, in Unicode's form NFC."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


def write_cases(rows: Iterable[CaseRow], uri: str) -> dict[str, int]:
    """Write a cases file and return the number of rows by language.

    Raises:
        AltDiffusionError: there is no row, or an id occurs twice.
    """
    lines: list[str] = []
    counts: dict[str, int] = {}
    ids: set[str] = set()
    for row in rows:
        if row.id in ids:
            raise AltDiffusionError(f"prompt {row.id}", "occurs twice in the set", "remove one of the two")
        ids.add(row.id)
        counts[row.language] = counts.get(row.language, 0) + 1
        lines.append(json.dumps(row.to_json(), ensure_ascii=False) + "\n")
    if not lines:
        raise AltDiffusionError(f"cases file {uri}", "would be empty", "check the source and the languages")
    files.write_atomic(uri, "".join(lines).encode())
    return {code: counts[code] for code in CODES if code in counts}
