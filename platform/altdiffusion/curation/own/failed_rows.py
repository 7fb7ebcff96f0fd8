"""The rows that img2dataset could not download, from the table that it writes next to a folder or tar file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from altdiffusion.curation.own.listing import read_file
from altdiffusion.curation.own.sample import Caption, Sample
from altdiffusion.curation.own.table_rows import python_rows
from altdiffusion.curation.rejects import SOURCE_FAILED, Refused
from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.storage.arrow_errors import UNREADABLE

_COLUMNS = ("url", "caption", "key", "status", "error_message")


def failure(fields: Mapping[str, Any]) -> Refused | None:
    """Return why img2dataset has no image for a row; None where it has, or where the row is not img2dataset's."""
    status = fields.get("status")
    if not isinstance(status, str) or status == "success" or "key" not in fields:
        return None
    return Refused(SOURCE_FAILED, f"{status}: {fields.get('error_message') or 'no message'}")


def failed_rows(uri: str, digest: str) -> Iterator[Sample]:
    """Yield the rows of a table whose status is not `success`; none where it is not a table of img2dataset.

    Raises:
        AltDiffusionError: it is damaged, or another one since planning.
    """
    body = read_file(uri, digest)
    assert isinstance(body, bytes)
    try:
        file = pq.ParquetFile(pa.BufferReader(body))
        names = [name for name in _COLUMNS if name in file.schema_arrow.names]
        rows = python_rows(file.read(columns=names)) if {"key", "status"} <= {*names} else []
    except UNREADABLE as error:
        raise AltDiffusionError(
            f"source file {uri}", f"is not a readable Parquet file ({first_line(error)})", "restore it, or remove it"
        ) from error
    for row in rows:
        refused = failure(row)
        if refused is not None:
            caption = row.get("caption")
            captions = [Caption(text=caption)] if isinstance(caption, str) else []
            yield Sample(name=str(row["key"]), captions=captions, fields=row, refused=refused)
