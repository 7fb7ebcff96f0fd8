"""What a unit leaves behind: shards of accepted rows, a shard of rejects with one reason each, and its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.records import REJECTS
from altdiffusion.storage.dataset import Dataset
from altdiffusion.storage.ledger import Unit, UnitRecord, total
from altdiffusion.storage.shards import ROW_GROUP_ROWS


def rejects_table(
    unit_id: str,
    *,
    row: Any,
    reason: Any,
    sample_id: Any = None,
    url: Any = None,
    language: Any = None,
    detail: Any = None,
) -> pa.Table:
    """Columns of rejected rows, each an array or list of one length, as a REJECTS table; what is unknown is null."""
    rows = len(row)
    given = {"row": row, "sample_id": sample_id, "url": url, "language": language, "reason": reason, "detail": detail}
    columns: dict[str, Any] = {"unit_id": pa.array([unit_id], pa.string()).take(pa.array([0] * rows, pa.int32()))}
    for name, values in given.items():
        dtype = REJECTS.field(name).type
        if values is None:
            columns[name] = pa.nulls(rows, dtype)
        else:
            columns[name] = values if isinstance(values, pa.ChunkedArray) else pa.array(values, dtype)
    return pa.table([columns[field.name] for field in REJECTS], schema=REJECTS)


def finish_unit(
    dataset: Dataset,
    unit: Unit,
    *,
    rows_in: int,
    accepted: Sequence[pa.Table],
    rejects: pa.Table,
    keep_empty: bool = False,
    row_group_rows: int = ROW_GROUP_ROWS,
    tally: Mapping[str, int] | None = None,
) -> UnitRecord:
    """Writes the shards of a finished unit and returns its record; the caller's runner writes the ledger.

    Args:
        accepted: one table a shard, in order; empty ones leave no shard unless `keep_empty`.
        keep_empty: write empty shards too, for pipeline steps where a shard's place in the list carries meaning.
        row_group_rows: of the shards; `NARROW_GROUP_ROWS` suits rows without images.
        tally: what to count of the accepted rows (`curation.tally`); only where units are few.
    """
    shards = tuple(dataset.write_shard(table, row_group_rows) for table in accepted if keep_empty or table.num_rows)
    rejected = (dataset.write_rejects(rejects),) if rejects.num_rows else ()
    return UnitRecord(
        unit_id=unit.id,
        index=unit.index,
        input_digest=str(unit.payload["input_digest"]),
        rows_in=rows_in,
        shards=shards,
        rejects=rejected,
        rejects_by_reason=count(rejects["reason"]),
        rows_by_language=total(count(table["language"]) for table in accepted),
        tally=tally or {},
    )


def count(values: pa.ChunkedArray) -> dict[str, int]:
    """How often each value occurs, by value."""
    return {entry["values"]: entry["counts"] for entry in sorted(pc.value_counts(values).to_pylist(), key=_key)}


def _key(entry: dict[str, Any]) -> str:
    return str(entry["values"])
