"""Rows as in sources, and select with a stand-in for the language model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from altdiffusion.curation.config import LanguageConfig, SelectConfig, SourceConfig
from altdiffusion.curation.links.filters import judge, number_filters
from altdiffusion.curation.links.reader import open_unit
from altdiffusion.curation.links.select_work import SelectWork
from altdiffusion.curation.links.source_columns import SCORES, SIZES, TEXTS, numbers, texts
from altdiffusion.curation.links.sources import Part, plan_sources, scan_source
from altdiffusion.execution.units import Unit


def unchecked(values: list[bytes | None]) -> pa.Array:
    """Return an array of text that may hold bytes that are not UTF-8, as a Parquet file may."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


def normalised(given: dict[str, Any], config: SourceConfig | None = None) -> pa.Table:
    """Return columns under our names, of any type, as select sees them."""
    rows = len(next(iter(given.values())))
    columns = {
        name: column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
        for name, column in given.items()
    }
    return pa.table({**numbers(columns, rows), **texts(columns, rows, config or SourceConfig(name="s", uri="x"))})


def read_rows(uri: str, digest: str, start: int, stop: int, config: SourceConfig, partition: Any = None) -> pa.Table:
    """Return the rows of a part, normalised."""
    names = ["sample_id", *TEXTS, *SIZES, *SCORES]
    with open_unit(uri, digest, start, stop, config, partition) as part:
        return pa.concat_tables([normalised(given, config) for _, given in part.batches(part.groups, names)])


def read_unit(unit: Unit, config: SourceConfig) -> pa.Table:
    """Return the rows of a unit, normalised."""
    place = unit.payload
    rows = int(place["start"]), int(place["stop"])
    return read_rows(str(place["uri"]), str(place["part"]), *rows, config, place.get("partition"))


def read_part(part: Part, config: SourceConfig) -> pa.Table:
    """Return the rows of a part, normalised."""
    return read_rows(part.uri, part.digest, 0, part.rows, config)


def read_all(config: SourceConfig) -> pa.Table:
    """Return all rows of a source, unit by unit, normalised."""
    return pa.concat_tables([read_unit(unit, config) for unit in plan_sources([scan_source(config)])])


GOOD = {
    "url": "http://a.example/1.jpg",
    "caption": "A red bicycle leans against the wall of an old house in the village",
    "width": 640,
    "height": 480,
    "similarity": 0.35,
    "punsafe": 0.1,
    "pwatermark": 0.1,
    "aesthetic": 7.5,
    "source_language": "en",
    "sample_id": 1,
}


def table(*changes: dict[str, Any]) -> pa.Table:
    """Return good rows with these changes, normalised."""
    rows = [{**GOOD, **change} for change in changes]
    types = {"sample_id": pa.int64(), "width": pa.int64(), "height": pa.int64(), "url": pa.string()}
    types |= {"caption": pa.string(), "source_language": pa.string()}
    return normalised({name: pa.array([row[name] for row in rows], types.get(name, pa.float64())) for name in GOOD})


def split(work: SelectWork, rows: pa.Table, unit_id: str) -> tuple[pa.Table, pa.Table]:
    """Select in one pass over rows that are all in memory; return the LINKS rows that stay and the REJECTS rows."""
    columns = {name: rows[name] for name in rows.column_names}
    codes = judge(number_filters(work.select), columns, rows.num_rows)
    decided = work.decide_rows(columns, codes, unit_id, np.arange(rows.num_rows))
    return decided.accepted, decided.rejects


class Believer:
    """Replaces the language model: every caption is English."""

    def identify(self, captions: pa.Array, _: pa.Array) -> tuple[pa.Array, pa.Array, pa.Array]:
        language = pa.repeat(pa.scalar("en"), len(captions))
        return language, pa.repeat(pa.scalar(0.9, pa.float32()), len(captions)), language


def believing(config: SelectConfig, source: SourceConfig | None = None) -> SelectWork:
    """Return select's work, ready, without a language model or a blocklist."""
    source = source or SourceConfig(name="crawl", uri="unused")
    work = SelectWork(lake="memory://unused", dataset="x", source=source, select=config, language=LanguageConfig())
    work._identifier = Believer()  # type: ignore[assignment]
    return work


def reasons(config: SelectConfig, *changes: dict[str, Any], work: SelectWork | None = None) -> list[str]:
    """Return the reason of each of these rows, "" for those that stay."""
    _, rejects = split(work or believing(config), table(*changes), "unit")
    found = dict(zip(rejects["row"].to_pylist(), rejects["reason"].to_pylist(), strict=True))
    return [found.get(row, "") for row in range(len(changes))]
