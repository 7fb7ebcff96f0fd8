"""The English text and the concept of every prompt, from the cases file that the prompts were read from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.languages import language_of
from altdiffusion.storage import files

_REMEDY = "write a field `english` in each row, or an English row of the same `concept`"


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """What belongs to a prompt."""

    concept: str
    """What the prompts in several languages share."""
    language: str
    prompt: str
    english: str | None
    """The same in English; None where the file does not give it."""


def read_texts(uri: str) -> dict[str, Text]:
    """Return the texts by prompt id from JSON lines with id, language, concept, prompt and, if it has them, english.

    Without `english` the English text is the prompt of the same concept in English.

    Raises:
        AltDiffusionError: the file is missing, or a row is unusable; the error names the row.
    """
    try:
        lines = files.read_bytes(uri).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except FileNotFoundError as error:
        raise AltDiffusionError(f"cases file {uri}", "does not exist", "check the path") from error
    rows = [_row(uri, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    english = {row["concept"]: row["prompt"] for row in rows if language_of(row["language"]) == "en"}
    return {
        row["id"]: Text(
            concept=row["concept"],
            language=row["language"],
            prompt=row["prompt"],
            english=row.get("english") or english.get(row["concept"]),
        )
        for row in rows
    }


def check_english(uri: str, texts: Mapping[str, Text]) -> None:
    """Refuse texts of which one has no English text.

    Raises:
        AltDiffusionError: names the number of them and the first one.
    """
    without = [name for name, text in texts.items() if text.english is None]
    if without:
        raise AltDiffusionError(
            f"cases file {uri}",
            f"has no English text for {len(without):,} of {len(texts):,} prompts, e.g. {without[0]}",
            f"{_REMEDY}, or leave clip_sim_english out",
        )


def _row(uri: str, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
        wrong = [name for name in ("id", "language", "concept", "prompt") if not isinstance(row[name], str)]
        if wrong or not isinstance(row.get("english", ""), str):
            raise TypeError(f"{', '.join(wrong) or 'english'} is not a text")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AltDiffusionError(
            f"cases file {uri}, row {number}",
            f"is unusable ({type(error).__name__}: {first_line(error)})",
            "write id, language, concept and prompt as JSON on one line",
        ) from error
    return dict(row)
