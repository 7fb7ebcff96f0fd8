"""The prompts file: it is read, every row is checked, and the rows become a dataset of kind `prompts`."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.generation.settings import PromptsConfig
from altdiffusion.records import PROMPTS
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.ledger import Unit, UnitRecord

ROWS_PER_SHARD = 65_536
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._\-]{0,199}")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_WHOLE = re.compile(r"[-+]?\d{1,19}")


def read_prompts(config: PromptsConfig) -> pa.Table:
    """Return the prompts as a table of records.PROMPTS, in the file's order.

    Unknown columns are left out, since a prompts file may have columns for its owner's use.

    Raises:
        AltDiffusionError: the file or one of its rows is unusable; the error names the row, from 1, and the field.
    """
    rows = list(_rows(config.file, _read(config.file)))
    if not rows:
        raise AltDiffusionError(f"prompts file {config.file}", "holds no rows", "write one row per image")
    checked = []
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        checked.append(_check(config, number, row))
        first = seen.setdefault(checked[-1]["id"], number)
        if first != number:
            raise _bad(config.file, number, "id", row["id"], f"is also the id of row {first}", "use one id per row")
    return pa.Table.from_pylist(checked, schema=PROMPTS)


class PromptsWork:
    """The work of making the `prompts` dataset. The whole file is one unit, since one bad row stops all."""

    def __init__(self, lake_uri: str, dataset: str, config: PromptsConfig) -> None:
        self._lake_uri = lake_uri
        self._dataset = dataset
        self._config = config

    def setup(self) -> None:
        """Nothing to load."""

    def run(self, unit: Unit) -> UnitRecord:
        table = read_prompts(self._config)
        dataset = Lake(self._lake_uri).dataset(self._dataset)
        starts = range(0, table.num_rows, ROWS_PER_SHARD)
        return UnitRecord(
            unit_id=unit.id,
            index=unit.index,
            input_digest=str(unit.payload["input_digest"]),
            rows_in=table.num_rows,
            shards=tuple(dataset.write_shard(table.slice(start, ROWS_PER_SHARD)) for start in starts),
            rows_by_language=count_languages(table["language"]),
        )


def prompts_source(config: PromptsConfig) -> Ref:
    """Return the reference of the prompts file in lineage, by name and content."""
    name = re.sub(r"[^A-Za-z0-9._\-]", "-", config.file.rstrip("/").rsplit("/", 1)[-1])
    return Ref("source", name, files.sha256_hex(_read(config.file)))


def prompts_units(config: PromptsConfig) -> list[Unit]:
    """Return the one unit of `PromptsWork`."""
    digest = prompts_source(config).digest
    return [Unit(id=f"prompts-{digest[:32]}", index=0, payload={"input_digest": digest})]


def count_languages(languages: pa.ChunkedArray) -> dict[str, int]:
    """Return the sorted numbers of rows by language, for a unit's record."""
    counted = {str(entry["values"]): int(entry["counts"]) for entry in pc.value_counts(languages).to_pylist()}
    return dict(sorted(counted.items()))


def _read(uri: str) -> bytes:
    try:
        return files.read_bytes(uri)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise AltDiffusionError(f"prompts file {uri}", "does not exist", "check the path") from error


def _rows(uri: str, data: bytes) -> Iterator[Mapping[str, Any]]:
    suffix = uri.rsplit(".", 1)[-1].lower()
    if suffix == "parquet":
        try:
            yield from pq.read_table(pa.BufferReader(data)).to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise AltDiffusionError(
                f"prompts file {uri}", f"is not readable Parquet ({first_line(error)})", "write it again"
            ) from error
        return
    if suffix not in ("jsonl", "ndjson", "csv"):
        raise AltDiffusionError(f"prompts file {uri}", "has an unknown format", "name it .jsonl, .csv or .parquet")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        raise AltDiffusionError(f"prompts file {uri}, line {row}", "is not UTF-8", "save it as UTF-8") from error
    if suffix == "csv":
        for number, fields in enumerate(csv.DictReader(io.StringIO(text, newline=""), strict=True), 1):
            if None in fields or None in fields.values():
                raise AltDiffusionError(
                    f"prompts file {uri}, row {number}",
                    "has another number of fields than the header",
                    "put texts that hold a comma in double quotes",
                )
            yield {name: value if value != "" else None for name, value in fields.items()}
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise AltDiffusionError(
                    f"prompts file {uri}, row {number}", f"is not JSON ({error.msg})", "write one JSON object per line"
                ) from error
            if not isinstance(row, dict):
                raise AltDiffusionError(
                    f"prompts file {uri}, row {number}", "is not an object", "write one object per line"
                )
            yield row


def _check(config: PromptsConfig, number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    def bad(field: str, problem: str, remedy: str) -> AltDiffusionError:
        return _bad(config.file, number, field, row.get(field), problem, remedy)

    name, language, prompt = row.get("id"), row.get("language"), row.get("prompt")
    if not isinstance(name, str) or not _ID.fullmatch(name):
        raise bad("id", "is not a usable name", "use 1 to 200 letters, digits, '.', '_' and '-'")
    if language not in config.languages:
        raise bad("language", "is not a known language", f"use one of {', '.join(config.languages)}")
    if not isinstance(prompt, str) or not prompt.strip():
        raise bad("prompt", "is not a text", "write what the image shows")
    if _CONTROL.search(prompt):
        raise bad("prompt", "holds control characters", "use plain text only")
    if len(prompt.encode()) > config.max_prompt_bytes:
        raise bad("prompt", f"is longer than {config.max_prompt_bytes} bytes", "shorten it")
    numbers = {}
    for field, default in (
        ("seed", config.default_seed),
        ("width", config.default_size),
        ("height", config.default_size),
    ):
        value = row.get(field)
        value = default if value is None else _whole(value)
        if value is None:
            missing = row.get(field) is None
            raise bad(field, "is missing" if missing else "is not a whole number", "write a number like 512")
        numbers[field] = value
    if not -(2**63) <= numbers["seed"] < 2**63:
        raise bad("seed", "does not fit 64 bits", "use a smaller number")
    for field in ("width", "height"):
        if not 8 <= numbers[field] <= config.max_side:
            raise bad(field, f"is not between 8 and {config.max_side} pixels", "use e.g. 512")
    return {"id": name, "language": language, "prompt": prompt, **numbers}


def _whole(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, str) and _WHOLE.fullmatch(value.strip()) else None


def _bad(uri: str, number: int, field: str, value: Any, problem: str, remedy: str) -> AltDiffusionError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return AltDiffusionError(f"prompts file {uri}, row {number}, field {field}", f"{shown} {problem}", remedy)
