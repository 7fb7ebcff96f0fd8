"""One shard's rows as programs outside get them: verified, in the schema of the kind, without those taken down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import pyarrow as pa

from altdiffusion.errors import AltDiffusionError
from altdiffusion.records import SCHEMAS, Kind, completed
from altdiffusion.storage import files, shards
from altdiffusion.storage.dataset import Version
from altdiffusion.storage.shard_columns import read_columns
from altdiffusion.storage.shards import ShardInfo
from altdiffusion.storage.tombstones import COLUMNS, read_tombstones

Verify = Literal["shards", "pages"]
"""What is checked of a shard: the SHA-256 of the whole file, or the checksums of the pages that are read."""


@dataclass(frozen=True, kw_only=True)
class ShardRows:
    """Where the rows of one shard are. It is small, and can be sent to another process."""

    lake_uri: str
    folder_uri: str
    """The dataset's `shards` folder."""
    info: ShardInfo
    kind: Kind
    columns: tuple[str, ...]
    verify: Verify

    @property
    def uri(self) -> str:
        """URI of the file."""
        return shards.shard_uri(self.folder_uri, self.info.sha256)

    @property
    def schema(self) -> pa.Schema:
        """The columns, in the order that was asked for."""
        return pa.schema([SCHEMAS[self.kind].field(name) for name in self.columns])

    def table(self) -> pa.Table:
        """Return the rows that were not taken down; columns that are newer than the shard are null.

        Raises:
            AltDiffusionError: the shard or the tombstones are missing or damaged.
        """
        tombstones = read_tombstones(self.lake_uri)
        naming = [name for name in COLUMNS if name in SCHEMAS[self.kind].names] if len(tombstones) else []
        read = ShardRows(**{**vars(self), "columns": tuple(dict.fromkeys([*self.columns, *naming]))})
        table = read._read()
        listed = tombstones.names(table)
        kept = table.filter(pa.array(~listed)) if listed.any() else table
        return kept.select(list(self.columns))

    def _read(self) -> pa.Table:
        if self.verify == "shards":
            return shards.read_table(self.folder_uri, self.info.sha256, self.schema)
        return completed(read_columns(self.folder_uri, self.info, self.columns), self.schema).select(list(self.columns))

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows in batches of at most `rows`."""
        yield from self.table().combine_chunks().to_batches(max_chunksize=rows)


def shard_rows(version: Version, columns: Sequence[str] | None, verify: Verify) -> tuple[ShardRows, ...]:
    """Return where the rows of all shards are, in input order.

    Args:
        columns: names of the wanted columns; None for all.

    Raises:
        AltDiffusionError: the kind has no such column, none is named, or `verify` is not known.
    """
    there = version.schema_names
    wanted = tuple(there if columns is None else [columns] if isinstance(columns, str) else columns)
    unknown = [name for name in wanted if name not in there]
    if unknown or not wanted or len(set(wanted)) < len(wanted):
        problem = f"has no column {', '.join(unknown)}" if unknown else "is asked for no column, or for one twice"
        raise AltDiffusionError(version.ref.short, problem, f"columns of {version.manifest.kind}: {', '.join(there)}")
    if verify not in get_args(Verify):
        raise AltDiffusionError(f"verify {verify!r}", "is not known", f"give one of {', '.join(get_args(Verify))}")
    folder = files.join(version.folder_uri, "shards")
    return tuple(
        ShardRows(
            lake_uri=version.lake_uri, folder_uri=folder, info=info, kind=version.manifest.kind, columns=wanted,
            verify=verify,
        )
        for info in version.shards
    )  # fmt: skip
