"""The rows that each kept judge of a lake was trained on, so that a takedown finds the judges that it concerns.

    <lake>/judges/<digest>.safetensors   a judge, which an evaluation trains again where it is missing
    <lake>/judges/<digest>.rows.json     ids and image digests of the rows; written before the judge is

A judge is a copy that costs minutes to make again, so a takedown deletes it. One whose rows are not recorded (an
earlier version trained it, or the record is damaged) may have learned from any row, and is treated as if it had.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from altdiffusion.storage.documents import optional_document
from altdiffusion.storage.tombstones import Tombstones

FOLDER = "judges"
SUFFIX = ".safetensors"
ROWS = pa.schema([pa.field("sample_id", pa.int64()), pa.field("image_sha256", pa.string())])
"""What is recorded of a row; an image may have several rows."""
_ROWS_SUFFIX = ".rows.json"


@dataclass(frozen=True, kw_only=True)
class TaughtJudge:
    """A judge that was trained on rows in question, or may have been."""

    uri: str
    rows: int | None
    """Number of these rows; None where the judge's rows are not recorded."""

    def __str__(self) -> str:
        if self.rows is None:
            return f"{self.uri}: the rows that it was trained on are not recorded"
        return f"{self.uri}: was trained on {self.rows:,} of the rows"

    def to_json(self) -> dict[str, Any]:
        return {"uri": self.uri, "rows": self.rows}


def judge_uri(lake_uri: str, digest: str) -> str:
    """Return the URI of the judge of certain inputs."""
    return files.within(lake_uri, FOLDER, f"{digest}{SUFFIX}")


def record_rows(lake_uri: str, digest: str, rows: pa.Table) -> None:
    """Record that a judge is trained on these ROWS; those that were recorded of it before stay recorded.

    The same images in another dataset are the same judge.
    """
    known = _recorded(lake_uri, digest)
    rows = rows.select(ROWS.names).cast(ROWS)
    merged = pa.concat_tables([rows] if known is None else [known, rows]).group_by(ROWS.names).aggregate([])
    merged = merged.sort_by([(name, "ascending") for name in ROWS.names])
    if known is None or merged.num_rows > known.num_rows:
        columns = {name: merged[name].to_pylist() for name in ROWS.names}
        value = {**columns, "checksum": files.sha256_hex(files.canonical_json(columns))}
        files.write_atomic(_rows_uri(lake_uri, digest), files.canonical_json(value))


def judges_of(lake_uri: str, tombstones: Tombstones) -> list[TaughtJudge]:
    """Return the judges of a lake that were trained on rows which tombstones name, or may have been."""
    if not len(tombstones):
        return []
    found = []
    for name in files.list_names(files.join(lake_uri, FOLDER)):
        if not name.endswith(SUFFIX):
            continue
        digest = name.removesuffix(SUFFIX)
        rows = _recorded(lake_uri, digest)
        count = None if rows is None else int(np.count_nonzero(tombstones.names(rows)))
        if count != 0:
            found.append(TaughtJudge(uri=judge_uri(lake_uri, digest), rows=count))
    return found


def discard_judges(lake_uri: str, tombstones: Tombstones) -> list[TaughtJudge]:
    """Delete the judges that `judges_of` finds, and return them."""
    found, below = judges_of(lake_uri, tombstones), files.join(lake_uri, FOLDER)
    for judge in found:
        files.remove_tree(judge.uri, below=below)
        files.remove_tree(f"{judge.uri.removesuffix(SUFFIX)}{_ROWS_SUFFIX}", below=below)
    return found


def _rows_uri(lake_uri: str, digest: str) -> str:
    return files.within(lake_uri, FOLDER, f"{digest}{_ROWS_SUFFIX}")


def _recorded(lake_uri: str, digest: str) -> pa.Table | None:
    """Return the ROWS of a judge; None where they are not recorded, or the record is damaged."""
    try:
        document = optional_document(_rows_uri(lake_uri, digest))
        if document is None:
            return None
        columns = {name: document.value.get(name) for name in ROWS.names}
        if document.digest("checksum") != files.sha256_hex(files.canonical_json(columns)):
            return None
        return pa.table({name: pa.array(columns[name], ROWS.field(name).type) for name in ROWS.names})
    except (AltDiffusionError, pa.ArrowException, TypeError, ValueError):
        return None
