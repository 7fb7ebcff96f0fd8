"""Columns whose values are in the names of folders, as Spark and Hive write them: `language=uk/part-00000.parquet`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from altdiffusion.curation.links.source_columns import TEXTS

Partition = Mapping[str, str | None]
"""Column -> its value in every row of a part."""
_NULL = "__HIVE_DEFAULT_PARTITION__"


def partition_of(folders: str) -> dict[str, str | None]:
    """Return the columns that a path between a table's folder and its part states."""
    pairs = (folder.partition("=") for folder in folders.split("/") if "=" in folder)
    return {unquote(name): None if value == _NULL else unquote(value) for name, _, value in pairs}


def with_partition(schema: pa.Schema, partition: Partition) -> pa.Schema:
    """Return a part's columns with those of its folders, which count where both have one."""
    if not partition:
        return schema
    own = [field for field in schema if field.name not in partition]
    return pa.schema([*own, *((name, pa.null()) for name in partition)])


def constant(value: str | None, name: str, rows: int) -> pa.ChunkedArray:
    """Return a column of one value: text, or the number that it states, under our name."""
    if name in TEXTS or value is None:
        return pa.chunked_array([pa.array([value] * rows, pa.string() if name in TEXTS else pa.float64())])
    given: Any = int(value) if name == "sample_id" else float(value)
    return pa.chunked_array([pa.array([given] * rows, pa.int64() if name == "sample_id" else pa.float64())])
