"""Rows of Arrow tables as Python has them; text that is not UTF-8 stays bytes and is never changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa


def python_rows(batch: pa.RecordBatch | pa.Table) -> list[dict[str, Any]]:
    """Return the rows; text, also in lists, that is not UTF-8 is bytes: Parquet does not check what it holds."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:
        columns = [_values(batch[name]) for name in batch.schema.names]
        return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def check_bounds(batch: pa.RecordBatch) -> None:
    """Check that every offset and index of an Arrow file leads to its own bytes: to read others ends the process.

    Text counts as bytes: what is not UTF-8 is a matter of its row.

    Raises:
        pa.ArrowInvalid: one does not.
    """
    for column in batch.columns:
        column.view(_without_text(column.type)).validate(full=True)


def _without_text(dtype: pa.DataType) -> pa.DataType:
    """Return the type of the same buffers with bytes in place of text."""
    plain = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
    if dtype in plain:
        return plain[dtype]
    if pa.types.is_struct(dtype):
        return pa.struct([field.with_type(_without_text(field.type)) for field in dtype])
    if pa.types.is_list(dtype):
        return pa.list_(dtype.value_field.with_type(_without_text(dtype.value_type)))
    if pa.types.is_large_list(dtype):
        return pa.large_list(dtype.value_field.with_type(_without_text(dtype.value_type)))
    return dtype


def text_columns(schema: pa.Schema) -> set[str]:
    """Return the columns of text or lists of it, in lower case."""
    return {field.name.lower() for field in schema if _as_bytes(field.type) is not None}


def wrong_text(row: Mapping[str, Any], names: Collection[str]) -> str | None:
    """Return, for people, which of these columns (lower case) holds bytes that are not UTF-8; None where none does."""
    for name, value in row.items():
        cells = value if isinstance(value, list) else [value]
        for cell in cells:
            if name.lower() in names and isinstance(cell, bytes):
                return f"column {name} is not UTF-8 text: {cell[:40]!r}"
    return None


def _values(column: Any) -> list[Any]:
    raw = _as_bytes(column.type)
    return column.to_pylist() if raw is None else [_decoded(value) for value in column.cast(raw).to_pylist()]


def _as_bytes(dtype: pa.DataType) -> pa.DataType | None:
    """Return the type of the same bytes; None where it is neither text nor a list of text."""
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype):
        return pa.large_binary()
    if (pa.types.is_list(dtype) or pa.types.is_large_list(dtype)) and _as_bytes(dtype.value_type) is not None:
        return pa.large_list(pa.large_binary())
    return None


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(one) for one in value]
    try:
        return value if value is None else value.decode()
    except UnicodeDecodeError:
        return value
