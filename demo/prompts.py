"""Prompts of the demo: the names of its concepts in the 18 languages, and the facts about them for the evaluation.

    <out>/prompts.jsonl   concept x language for the contact sheet (id, language, prompt, seed, width, height)
    <out>/cases.jsonl     all concepts x 18 languages for the evaluation: the same, and concept, seen
    <out>/labels.parquet  sample_id, concept: what the judge learns from the curated images

`seen` is false for the names that were held out of the crawl and of the text encoder's training, and that no other
language of the crawl spells the same.
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
from demo.concepts import Concept, held_out, spelled_elsewhere

SIDE = 32
SHEET_CONCEPTS = 10


def write_prompts(
    out: Path, concepts: Sequence[Concept], truth: pa.Table, sheet_concepts: int = SHEET_CONCEPTS
) -> None:
    """Write the three files; the same bytes every time."""
    chosen = concepts[:sheet_concepts]  # their order alternates between the kinds of things
    _write_lines(out / "prompts.jsonl", (_prompt(concept, code) for code in CODES for concept in chosen))
    cases = (
        {**_prompt(concept, code), "concept": concept.key, "seen": _seen(concept, code)}
        for concept in concepts
        for code in CODES
    )
    _write_lines(out / "cases.jsonl", cases)
    known = (
        pa.table({"sample_id": truth["sample_id"], "concept": truth["concept"]})
        .group_by(["sample_id", "concept"], use_threads=False)
        .aggregate([])
    )
    files.write_atomic(str(out / "labels.parquet"), shards.encode(known.sort_by("sample_id")))


def _seen(concept: Concept, language: str) -> bool:
    # "banana" held out in one language is still read in another: such a name is not unseen.
    return not held_out(concept, language) or spelled_elsewhere(concept, language)


def _prompt(concept: Concept, language: str) -> dict[str, Any]:
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
