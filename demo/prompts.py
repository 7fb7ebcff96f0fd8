"""Prompts of the demo: the names of its concepts in the 18 languages, and the facts about them for the evaluation.

    <out>/prompts.jsonl   concept x language for the contact sheet (id, language, prompt, seed, width, height)
    <out>/cases.jsonl     all concepts x 18 languages for the evaluation: the same, and concept, group
    <out>/labels.parquet  sample_id, concept, use: what the curated images show, and what they are for

`group` is what training can know of the name (`demo.concepts.group`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from altdiffusion.languages import CODES
from altdiffusion.storage import files, shards
from demo.concepts import Concept, group

SIDE = 32
SHEET_CONCEPTS = 10


def write_prompts(
    out: Path, concepts: Sequence[Concept], labels: pa.Table, sheet_concepts: int = SHEET_CONCEPTS
) -> None:
    """Write the three files; the same bytes every time."""
    chosen = concepts[:sheet_concepts]  # their order alternates between the kinds of things
    _write_lines(out / "prompts.jsonl", (prompt(concept, code) for code in CODES for concept in chosen))
    cases = (
        {**prompt(concept, code), "concept": concept.key, "group": group(concept, code)}
        for concept in concepts
        for code in CODES
    )
    _write_lines(out / "cases.jsonl", cases)
    files.write_atomic(str(out / "labels.parquet"), shards.encode(labels))


def prompt(concept: Concept, language: str) -> dict[str, Any]:
    """Return the prompt that names a concept in a language; every language of a concept starts from the same noise."""
    # One seed per concept: every language starts from the same noise, so that only the text differs.
    seed = int.from_bytes(hashlib.sha256(concept.key.encode()).digest()[:4], "big")
    return {
        "id": f"{concept.key}-{language}",
        "language": language,
        "prompt": concept.names[language],
        "seed": seed,
        "width": SIDE,
        "height": SIDE,
    }


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    files.write_atomic(str(path), text.encode())
