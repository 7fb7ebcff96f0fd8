"""The ledger: one completion record per unit of work; what is recorded is never done again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from altdiffusion.storage.documents import Document, parse_document
from altdiffusion.storage.shards import ShardInfo

UNIT_ID = re.compile(r"(?!\.)[A-Za-z0-9._\-]{1,200}")
"""What may be the id of a unit: it names a file, which is not hidden."""


@dataclass(frozen=True, kw_only=True)
class UnitRecord:
    """The result of a finished unit. rows_in == rows of its shards + all its rejects, always."""

    unit_id: str
    index: int
    input_digest: str
    rows_in: int
    shards: tuple[ShardInfo, ...] = ()
    rejects: tuple[ShardInfo, ...] = ()
    rejects_by_reason: Mapping[str, int] = field(default_factory=dict)
    rows_by_language: Mapping[str, int] = field(default_factory=dict)
    tally: Mapping[str, int] = field(default_factory=dict)
    """Counts of accepted rows by measure, language and bin, for pipeline steps that count them (`tally`)."""

    def __post_init__(self) -> None:
        rejected = sum(self.rejects_by_reason.values())
        if self.rows_in != self.rows_out + rejected or rejected != sum(shard.rows for shard in self.rejects):
            raise ValueError(
                f"unit {self.unit_id}: {self.rows_in} rows in, but {self.rows_out} accepted + {rejected} rejected"
            )

    @property
    def rows_out(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def to_json(self) -> dict[str, Any]:
        return {
            "unit_id": self.unit_id,
            "index": self.index,
            "input_digest": self.input_digest,
            "rows_in": self.rows_in,
            "shards": [shard.to_json() for shard in self.shards],
            "rejects": [shard.to_json() for shard in self.rejects],
            "rejects_by_reason": dict(self.rejects_by_reason),
            "rows_by_language": dict(self.rows_by_language),
            "tally": dict(self.tally),
        }

    @classmethod
    def of_document(cls, document: Document) -> UnitRecord:
        """Return the record that a file of a lake, or a worker's answer, describes.

        Raises:
            AltDiffusionError: a value is not usable.
            ValueError: the counts do not add up.
        """
        return cls(
            unit_id=document.text("unit_id", UNIT_ID, needed="a unit id"),
            index=document.count("index"),
            input_digest=document.text("input_digest"),
            rows_in=document.count("rows_in"),
            shards=tuple(ShardInfo.of_document(shard) for shard in document.objects("shards")),
            rejects=tuple(ShardInfo.of_document(shard) for shard in document.objects("rejects")),
            rejects_by_reason=document.counts("rejects_by_reason"),
            rows_by_language=document.counts("rows_by_language"),
            tally=document.counts("tally"),
        )


def count(values: pa.ChunkedArray) -> dict[str, int]:
    """Return how often each value of a string column occurs, in the order of the values."""
    found = {entry["values"]: int(entry["counts"]) for entry in pc.value_counts(values).to_pylist()}
    return dict(sorted(found.items(), key=lambda item: str(item[0])))


def total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the sums of counts by key, in the order of the keys, so that they can be hashed."""
    result: Counter[str] = Counter()
    for one in counts:
        result.update(one)
    return dict(sorted(result.items()))


def _sealed(record: UnitRecord) -> bytes:
    """Return the content of a record's file: its values and their SHA-256."""
    value = record.to_json()
    return files.canonical_json({**value, "sha256": files.sha256_hex(files.canonical_json(value))})


class Ledger:
    """The records of one dataset under one config fingerprint: `<dataset>/ledger/<fingerprint>/<unit>.json`.

    `ledger_pages.read_ledger` reads all of them.

    Args:
        folder_uri: folder of the records.
        pages_uri: folder of the pages, in which records are kept together to be read faster; None where none are kept.
    """

    def __init__(self, folder_uri: str, pages_uri: str | None = None) -> None:
        self.folder_uri = folder_uri
        self.pages_uri = pages_uri

    def uri(self, unit_id: str) -> str:
        """Return the URI of a unit's file."""
        return files.within(self.folder_uri, f"{unit_id}.json")

    def get(self, unit_id: str) -> UnitRecord | None:
        """Return the record of a unit, or None while it is not done."""
        try:
            return self._read(unit_id)
        except FileNotFoundError:
            return None

    def record(self, record: UnitRecord) -> UnitRecord:
        """Record a unit whose shards are written. The first record of a unit stays; return the valid one."""
        data = _sealed(record)
        while not files.put_if_absent(self.uri(record.unit_id), data):
            known = self.get(record.unit_id)
            if known is not None:  # None: another job has just removed it
                return known
        return record

    def replace(self, record: UnitRecord) -> None:
        """Record a finished unit in place of its earlier record, because rows of it were taken down."""
        files.write_atomic(self.uri(record.unit_id), _sealed(record))

    def forget(self, unit_id: str) -> None:
        """Remove a record so that the unit is done again (a shard of it was damaged)."""
        files.remove_tree(self.uri(unit_id), below=self.folder_uri)

    def done_ids(self) -> set[str]:
        """Return the ids of all recorded units, from one listing."""
        names = (name for name in files.list_names(self.folder_uri) if name.endswith(".json") and name[0] != ".")
        return {name.removesuffix(".json") for name in names}

    def _read(self, unit_id: str) -> UnitRecord:
        uri = self.uri(unit_id)
        return self.parse(uri, unit_id, files.read_bytes(uri))

    def parse(self, uri: str, unit_id: str, data: bytes) -> UnitRecord:
        """Return the record that the content of a unit's file means.

        Raises:
            AltDiffusionError: it is damaged, or is another unit's.
        """
        remedy = "delete this file; the unit is then done again"
        document = parse_document(uri, data, remedy=remedy)
        stated = document.value.pop("sha256", None)
        try:
            if stated != files.sha256_hex(files.canonical_json(document.value)):
                raise ValueError("its SHA-256 is not the one that it states")
            record = UnitRecord.of_document(document)
            if record.unit_id != unit_id:
                raise ValueError(f"it is the record of unit {record.unit_id}")
        except ValueError as error:
            raise AltDiffusionError(f"ledger record {uri}", f"is not a unit record ({error})", remedy) from error
        return record
