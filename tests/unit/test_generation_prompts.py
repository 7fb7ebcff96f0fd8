"""The prompts file: what is read, and how a bad row is reported."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from altdiffusion.config import from_dict
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.prompts import prompts_source, read_prompts
from altdiffusion.generation.settings import GenerateConfig, PromptsConfig
from altdiffusion.records import PROMPT_ROW, PROMPTS

ROWS: list[dict[str, Any]] = [
    {"id": "a", "language": "en", "prompt": "a red, ripe apple", "seed": 1, "width": 32, "height": 48},
    {"id": "b.2", "language": "ar", "prompt": "تفاحة حمراء", "seed": -5, "width": 32, "height": 32},
    {"id": "c_3", "language": "zh", "prompt": "红苹果 🍎", "seed": 2**62, "width": 64, "height": 32},
]


def read(path: Path, **settings: Any) -> list[dict[str, Any]]:
    table = read_prompts(PromptsConfig(file=str(path), **settings))
    assert table.schema.equals(PROMPTS)
    rows: list[dict[str, Any]] = table.select([field.name for field in PROMPT_ROW]).to_pylist()
    return rows


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def test_the_three_formats_read_the_same(tmp_path: Path) -> None:
    extra = [{**row, "concept": "apple"} for row in ROWS]  # columns of the file's owner are left alone
    assert read(jsonl(tmp_path / "p.jsonl", extra)) == ROWS
    pq.write_table(pa.Table.from_pylist(extra), tmp_path / "p.parquet")
    assert read(tmp_path / "p.parquet") == ROWS
    with open(tmp_path / "p.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(extra[0]))
        writer.writeheader()
        writer.writerows(extra)
    assert read(tmp_path / "p.csv") == ROWS


def test_defaults_fill_what_a_row_leaves_out(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", [{"id": "a", "language": "en", "prompt": "x"}])
    assert read(path, default_seed=9, default_size=64) == [
        {"id": "a", "language": "en", "prompt": "x", "seed": 9, "width": 64, "height": 64}
    ]
    with pytest.raises(AltDiffusionError, match="row 1, field seed: None is missing"):
        read(path, default_size=64)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("id", "../../x", "not a usable name"),
        ("id", "", "not a usable name"),
        ("id", "x" * 201, "not a usable name"),
        ("id", 7, "not a usable name"),
        ("id", "a", "is also the id of row 1"),
        ("language", "sv", "not a known language"),
        ("language", None, "not a known language"),
        ("prompt", " \n", "not a text"),
        ("prompt", None, "not a text"),
        ("prompt", "a\x00b", "control characters"),
        ("prompt", "é" * 3000, "longer than 4096 bytes"),
        ("seed", "x", "not a whole number"),
        ("seed", 1.5, "not a whole number"),
        ("seed", True, "not a whole number"),
        ("seed", 2**63, "does not fit 64 bits"),
        ("width", 0, "between 8 and 2048"),
        ("height", 4096, "between 8 and 2048"),
        ("height", None, "is missing"),
    ],
)
def test_a_bad_row_is_named_with_number_and_field(tmp_path: Path, field: str, value: Any, problem: str) -> None:
    path = jsonl(tmp_path / "p.jsonl", [ROWS[0], {**ROWS[1], field: value}])
    with pytest.raises(AltDiffusionError) as caught:
        read(path)
    assert caught.value.what == f"prompts file {path}, row 2, field {field}"
    assert problem in caught.value.problem
    assert len(str(caught.value)) < 500


def test_files_that_are_not_prompts(tmp_path: Path) -> None:
    cases = {
        "missing.jsonl": (None, "does not exist"),
        "empty.jsonl": (b"", "holds no row"),
        "broken.jsonl": (b'{"id": "a"\n', "row 1: is not JSON"),
        "list.jsonl": (b"[1]\n", "row 1: is not an object"),
        "latin.jsonl": (b'\n{"id": "\xe4"}\n', "line 2: is not UTF-8"),
        "cut.parquet": (b"PAR1xxxx", "is not readable Parquet"),
        "short.csv": (b"id,language,prompt\na,en\n", "row 1: has another number of fields"),
        "prompts.txt": (b"a cat\n", "has an unknown format"),
    }
    for name, (data, problem) in cases.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(AltDiffusionError, match=problem) as caught:
            read(tmp_path / name)
        assert name in str(caught.value)


def test_the_source_is_named_by_content(tmp_path: Path) -> None:
    first = prompts_source(PromptsConfig(file=str(jsonl(tmp_path / "p.jsonl", ROWS))))
    moved = prompts_source(PromptsConfig(file=str(jsonl(tmp_path / "q.jsonl", ROWS))))
    other = prompts_source(PromptsConfig(file=str(jsonl(tmp_path / "p.jsonl", ROWS[:1]))))
    assert first.digest == moved.digest != other.digest
    assert (first.kind, first.name) == ("source", "p.jsonl")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"steps": 0}, "between 1 and 1000"),
        ({"guidance_scale": -1.0}, "between 0 and 100"),
        ({"rows_per_unit": 0}, "must be at least 1"),
        ({"dtype": "float16"}, "does not run on a CPU"),
        ({"sampler": "euler"}, "not one of the choices"),
        ({"model": {}}, "exactly one of folder and run"),
        ({"model": {"folder": "x", "run": "y"}}, "exactly one of folder and run"),
        ({"model": {"folder": "x", "digest": "xyz"}}, "8 to 64 hex digits"),
        ({"prompts": {"file": "p.jsonl", "languages": ["sv"]}}, "not one of the choices.*use one of en"),
    ],
)
def test_invalid_settings_are_refused(change: dict[str, Any], problem: str) -> None:
    good: dict[str, Any] = {"model": {"folder": "m"}, "prompts": {"file": "p.jsonl"}}
    from_dict(GenerateConfig, good)
    with pytest.raises(AltDiffusionError, match=problem):
        from_dict(GenerateConfig, good | change)
