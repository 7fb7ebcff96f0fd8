"""Pages of a ledger: the records of many units in one file, so that hundreds of thousands are read in seconds.

    <lake>/index/ledger/<dataset>/<fingerprint>/<sha256>.parquet    up to 10,000 records

Pages are a part of the index (`storage.index`): a cache and never the truth. Every use lists the records themselves,
and a record in a page counts only if the stamp of its file is unchanged since it was read. So records that another
process added, replaced or removed are noticed, a damaged page is as good as none, and pages can be deleted at any time.

Once `FOLD_FROM` records are in no page, the next reader of the ledger puts them into new ones.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.storage import files, shards
from altdiffusion.storage.ledger import Ledger, UnitRecord
from altdiffusion.storage.listing import list_files

log = logging.getLogger(__name__)

FOLD_FROM = 1_000
"""Records outside of pages from which on they are put into pages."""
PAGE_RECORDS = 10_000
_AT_ONCE = 1_000
"""Records that are read in one go."""
_DECODED = 4
"""Pages whose records are in memory at a time: units follow each other nearly as they were finished."""
_ENDING = ".json"
_SCHEMA = pa.schema(
    [
        pa.field("unit_id", pa.string(), nullable=False),
        pa.field("stamp", pa.string(), nullable=False),
        pa.field("files", pa.list_(pa.string()), nullable=False),
        pa.field("record", pa.binary(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class _Page:
    """The content of a page's file, in which the records are compressed."""

    uri: str
    data: bytes

    def columns(self, *names: str) -> list[pa.ChunkedArray]:
        """Return columns of `_SCHEMA`, all rows."""
        return list(pq.read_table(pa.BufferReader(self.data), columns=list(names)).select(names).columns)


def read_ledger(ledger: Ledger) -> LedgerState:
    """Return what a ledger holds, from one listing and its pages; many records outside of pages are put into new ones.

    Raises:
        AltDiffusionError: the storage does not answer.
    """
    stamps = {
        name.removesuffix(_ENDING): stamp
        for name, stamp in list_files(ledger.folder_uri).items()
        if name.endswith(_ENDING)
    }
    state = LedgerState(ledger, stamps)
    if ledger.pages_uri is None or len(stamps) < FOLD_FROM:
        return state
    for page in _read_pages(ledger.pages_uri):
        state.add(page)
    loose = state.loose()
    if len(loose) >= FOLD_FROM:
        for start in range(0, len(loose), PAGE_RECORDS):
            written = _write_page(ledger.pages_uri, state, loose[start : start + PAGE_RECORDS])
            if written is not None:
                state.add(written)
        state.remove_superseded(ledger.pages_uri)
    return state


class LedgerState:
    """What a ledger holds at the time of one listing; `read_ledger` makes it.

    Args:
        stamps: the stamp of each record's file (`listing.Marked.stamp`) by unit id.
    """

    def __init__(self, ledger: Ledger, stamps: Mapping[str, str]) -> None:
        self.ledger = ledger
        self.stamps = stamps
        self._pages: list[_Page] = []
        self._superseded: list[_Page] = []
        self._places: dict[str, tuple[int, int]] = {}
        self._decoded: dict[int, pa.ChunkedArray] = {}

    def __len__(self) -> int:
        return len(self.stamps)

    def add(self, page: _Page) -> None:
        """Take the records of a page whose files are unchanged since."""
        number, used, seen = len(self._pages), 0, 0
        for row, (unit, stamp) in enumerate(
            zip(*(c.to_pylist() for c in page.columns("unit_id", "stamp")), strict=True)
        ):
            known = self.stamps.get(unit)
            seen += known is not None
            if stamp and known == stamp and unit not in self._places:
                self._places[unit] = (number, row)
                used += 1
        self._pages.append(page)
        if seen and not used:  # without a listed unit, it may be newer than the listing
            self._superseded.append(page)

    def remove_superseded(self, pages_uri: str) -> None:
        """Remove the pages of which every listed record has changed or is in another page."""
        for page in self._superseded:
            files.remove_tree(page.uri, below=pages_uri)

    def loose(self) -> list[str]:
        """Return the ids of the units whose records are in no page."""
        return sorted(unit for unit in self.stamps if unit not in self._places)

    def files(self) -> Iterator[tuple[str, Sequence[str]]]:
        """Yield each unit's id with the SHA-256 of its shards and rejects.

        Raises:
            AltDiffusionError: a record is damaged.
        """
        for number, page in enumerate(self._pages):
            units, named = (column.to_pylist() for column in page.columns("unit_id", "files"))
            for row, unit in enumerate(units):
                if self._places.get(unit) == (number, row):
                    yield unit, named[row]
        for record in self.records(self.loose()):
            yield record.unit_id, files_of(record)

    def records(self, unit_ids: Iterable[str]) -> Iterator[UnitRecord]:
        """Yield the records of these units in their order; one that was removed since is left out.

        Raises:
            AltDiffusionError: a record is damaged.
        """
        for unit, data in self.contents(unit_ids):
            if isinstance(data, FileNotFoundError):
                continue
            if isinstance(data, AltDiffusionError):
                raise data
            yield self.ledger.parse(self.ledger.uri(unit), unit, data)

    def of_units(self, unit_ids: Sequence[str]) -> Iterator[UnitRecord]:
        """Yield the records of finished units in the order of their ids.

        Raises:
            AltDiffusionError: a unit is not recorded, or its record is damaged.
        """
        found = self.records(unit_ids)
        for unit in unit_ids:
            record = next(found, None)
            if record is None or record.unit_id != unit:
                raise AltDiffusionError(
                    f"ledger {self.ledger.folder_uri}",
                    f"has no record of unit {unit}, which was finished; another process has removed it",
                    "run the job again when no other one writes to this dataset",
                )
            yield record

    def all(self) -> Iterator[UnitRecord]:
        """Yield all records, by unit id.

        Raises:
            AltDiffusionError: a record is damaged.
        """
        return self.records(sorted(self.stamps))

    def contents(self, unit_ids: Iterable[str]) -> Iterator[tuple[str, bytes | FileNotFoundError | AltDiffusionError]]:
        """Yield the content of the files of these units, or why one cannot be read."""
        rest = iter(unit_ids)
        while some := list(itertools.islice(rest, _AT_ONCE)):
            others = [unit for unit in some if unit not in self._places]
            read = dict(zip(others, files.read_many([self.ledger.uri(unit) for unit in others]), strict=True))
            for unit in some:
                yield unit, read[unit] if unit in read else self._in_page(*self._places[unit])

    def _in_page(self, number: int, row: int) -> bytes:
        if number not in self._decoded:
            if len(self._decoded) == _DECODED:
                del self._decoded[next(iter(self._decoded))]
            self._decoded[number] = self._pages[number].columns("record")[0]
        return bytes(self._decoded[number][row].as_py())


def files_of(record: UnitRecord) -> list[str]:
    """Return the SHA-256 of the shards and rejects of a unit."""
    return [info.sha256 for info in (*record.shards, *record.rejects)]


def _read_pages(pages_uri: str) -> Iterator[_Page]:
    """Yield the pages of a ledger; one that is damaged, or was removed since, is left out."""
    names = [name for name in files.list_names(pages_uri) if name.endswith(".parquet")]
    uris = [files.within(pages_uri, name) for name in names]
    for name, uri, data in zip(names, uris, files.read_many(uris), strict=True):
        try:
            if isinstance(data, FileNotFoundError):
                continue
            if isinstance(data, AltDiffusionError):
                raise data
            if f"{files.sha256_hex(data)}.parquet" != name:
                raise ValueError("its SHA-256 is not its name")
            if not pq.read_schema(pa.BufferReader(data)).equals(_SCHEMA):
                raise ValueError("its columns are others")
        except (AltDiffusionError, ValueError, pa.ArrowException, OSError) as error:
            log.info("page %s of a ledger is not used (%s)", uri, first_line(error))
            continue
        yield _Page(uri, data)


def _write_page(pages_uri: str, state: LedgerState, unit_ids: Sequence[str]) -> _Page | None:
    """Write the records of some units as a page and return it; None for a lake that may only be read.

    Records without a stamp, damaged or removed ones are left out: a reader that needs them reads their files.
    """
    rows = []
    for unit, data in state.contents(unit_ids):
        if not state.stamps[unit] or not isinstance(data, bytes):
            continue
        try:
            record = state.ledger.parse(state.ledger.uri(unit), unit, data)
        except AltDiffusionError:
            continue
        rows.append({"unit_id": unit, "stamp": state.stamps[unit], "files": files_of(record), "record": data})
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    data = shards.encode(table, PAGE_RECORDS)
    uri = files.within(pages_uri, f"{files.sha256_hex(data)}.parquet")
    try:
        files.write_atomic(uri, data)
    except (AltDiffusionError, OSError) as error:
        log.info("page %s of a ledger is not written (%s)", uri, first_line(error))
        return None
    return _Page(uri, data)
