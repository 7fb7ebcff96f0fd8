"""Spill files: what an unfinished unit has made so far, so that a stop does not lose it.

They are files `<dataset>/spill/<unit>,<rows>,<sha256>.parquet`, removed when their unit is recorded. No version refers
to one. Their names hold the number of rows, so that one listing counts what is made inside of units.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from altdiffusion.storage import files, shards
from altdiffusion.storage.dataset import Dataset

_NAME = re.compile(r"(?P<unit>[A-Za-z0-9._\-]{1,200}),(?P<rows>\d{1,9}),(?P<sha256>[0-9a-f]{64})\.parquet")


class Spill:
    """The spill files of one dataset."""

    def __init__(self, dataset: Dataset) -> None:
        self._below = dataset.folder_uri
        self._folder = files.within(dataset.folder_uri, "spill")

    def add(self, unit_id: str, table: pa.Table) -> None:
        """Write rows of a unit that is not finished; they are in a file of their own."""
        data = shards.encode(table)
        name = f"{unit_id},{table.num_rows},{files.sha256_hex(data)}.parquet"
        files.write_atomic(files.within(self._folder, name), data)

    def names(self, unit_id: str | None = None) -> list[str]:
        """Return the names of the files, of one unit or of all."""
        found = ((name, _NAME.fullmatch(name)) for name in files.list_names(self._folder))
        return [name for name, match in found if match is not None and unit_id in (None, match["unit"])]

    def rows(self) -> int:
        """Return the number of rows in all files; this takes one listing."""
        return sum(int(name.split(",")[1]) for name in self.names())

    def read(self, name: str, schema: pa.Schema) -> pa.Table | None:
        """Return the rows of a file; None if it is damaged or was removed meanwhile, since its rows can be made again.

        Args:
            name: as in `names`.
            schema: of its rows; a file with any other one was not written by this work, and counts as damaged.
        """
        try:
            data = files.read_bytes(files.within(self._folder, name))
            if files.sha256_hex(data) != name.split(",")[2].removesuffix(".parquet"):
                return None
            table = pq.read_table(pa.BufferReader(data))
        except (FileNotFoundError, pa.ArrowException, UnicodeDecodeError):
            return None
        return table if table.schema.equals(schema) else None

    def tables(self, unit_id: str, schema: pa.Schema) -> Iterator[pa.Table]:
        """Yield the rows that a unit has made before it was stopped, file by file."""
        for name in self.names(unit_id):
            table = self.read(name, schema)
            if table is not None:
                yield table

    def remove(self, unit_id: str) -> None:
        """Remove the files of a unit."""
        for name in self.names(unit_id):
            files.remove_tree(files.join(self._folder, name), below=self._below)

    def clear(self) -> None:
        """Remove all files."""
        files.remove_tree(self._folder, below=self._below)
