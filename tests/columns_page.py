"""docs/columns.md, made from `records.py`: `python -m tests.columns_page` writes it."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa

from altdiffusion.records import REJECTS, SCHEMAS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "columns.md"
_HEAD = """# Columns of every kind of dataset

A version's shards are Parquet files with the columns of its kind, in this order. The meaning of a
column is also in the file: `pyarrow.parquet.read_schema(FILE).field(NAME).metadata`. A column
marked *null* may be null; all others never are. A shard that is older than a nullable column lacks
it, and the readers of [the Python API](python.md) return null for it.

This page is made from `platform/altdiffusion/records.py` by `python -m tests.columns_page`; a test
compares the two.
"""
_ABOUT = {
    "links": "Rows of a source that passed the filters: where an image is, and its caption.",
    "images": "Downloaded or imported images with their captions.",
    "kept": "Columns that an import carried along (`keep`), of the same rows as its images.",
    "keys": "What duplicates are found by, one row per image and band of its hash.",
    "drops": "The images that a better one replaces.",
    "scores": "One row per image: embedding and scores.",
    "latents": "What the trainer reads: encoded images and token ids.",
    "parallel": "Texts with translations, for the distillation of the text encoder.",
    "prompts": "A prompts file, one row per prompt.",
    "generations": "Generated images.",
    "features": "What measures of generated images are computed from.",
}
_UNITS = (
    (re.compile(r"\bpixels\b"), "pixels"),
    (re.compile(r"\bprobability\b|confidence .*0 to 1"), "0 to 1"),
    (re.compile(r"cosine"), "-1 to 1"),
    (re.compile(r"about 1 to 10"), "about 1 to 10"),
    (re.compile(r"\b64 bits\b"), "64 bits"),
    (re.compile(r"float16 little-endian"), "float16"),
    (re.compile(r"float32 little-endian"), "float32"),
    (re.compile(r"\(hex\)"), "hex"),
)
"""How a meaning states its unit, and the unit as the column of units shows it."""


def page() -> str:
    """Return the page."""
    parts = [_HEAD]
    for kind, schema in SCHEMAS.items():
        parts.append(f"## {kind}\n\n{_ABOUT[kind]}\n\n{_table(schema)}")
    parts.append(f"## Rejected rows\n\nEvery dataset's rows that were [rejected](rejects.md).\n\n{_table(REJECTS)}")
    return "\n".join(parts)


def _table(schema: pa.Schema) -> str:
    lines = ["| column | type | unit | null | meaning |", "|---|---|---|---|---|"]
    for field in schema:
        meaning = field.metadata[b"meaning"].decode()
        dtype = f"list of {field.type.value_type}" if pa.types.is_list(field.type) else str(field.type)
        null = "null" if field.nullable else ""
        lines.append(f"| `{field.name}` | {dtype} | {_unit(meaning)} | {null} | {_escaped(meaning)} |")
    return "\n".join(lines) + "\n"


def _unit(meaning: str) -> str:
    return next((unit for pattern, unit in _UNITS if pattern.search(meaning)), "")


def _escaped(meaning: str) -> str:
    return meaning.replace("|", "\\|").replace("[", "\\[").replace("]", "\\]")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
