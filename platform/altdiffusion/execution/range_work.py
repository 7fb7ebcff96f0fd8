"""The bases of works: they open versions, read the rows of a unit and write what comes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from altdiffusion.execution.units import Unit, UnitWork
from altdiffusion.records import REJECTS
from altdiffusion.storage.cleansing import linked, taken_down, without_links
from altdiffusion.storage.dataset import Dataset, Lake, Version
from altdiffusion.storage.ledger import UnitRecord, count, total
from altdiffusion.storage.shards import ROW_GROUP_ROWS
from altdiffusion.storage.tombstones import read_tombstones


class RangeReader:
    """A reader of units that are parts of published versions.

    Args:
        lake: URI of the lake.
    """

    def __init__(self, *, lake: str) -> None:
        self.lake = lake
        self._versions: dict[str, Version] = {}

    def version(self, ref: str) -> Version:
        """Return a version by its reference; each is opened once per worker."""
        if ref not in self._versions:
            self._versions[ref] = Lake(self.lake).version(ref)
        return self._versions[ref]

    def version_of(self, unit: Unit) -> Version:
        """Return the version that a unit reads."""
        return self.version(str(unit.payload["version"]))

    def rows_of(self, unit: Unit) -> pa.Table:
        """Return the rows of a unit that `plan_ranges` made."""
        start, stop = int(unit.payload["start"]), int(unit.payload["stop"])
        return self.version_of(unit).read_shard(int(unit.payload["shard"])).slice(start, stop - start)

    def bucket_of(self, unit: Unit) -> list[int]:
        """Return the numbers of the shards that a unit of `plan_buckets` reads, without the empty ones."""
        shards = self.version_of(unit).shards
        places = range(int(unit.payload["bucket"]), len(shards), int(unit.payload["buckets"]))
        return [place for place in places if shards[place].rows]


class RangeWork(RangeReader, UnitWork):
    """A work whose units are parts of published versions, and whose rows go to one dataset.

    Args:
        lake: URI of the lake.
        dataset: name of the dataset that the units make.
    """

    def __init__(self, *, lake: str, dataset: str) -> None:
        super().__init__(lake=lake)
        self.dataset = dataset

    def setup(self) -> None:
        """Load what `run` needs, once per worker; this base needs nothing."""

    @property
    def output(self) -> Dataset:
        """The dataset that the units make."""
        return Lake(self.lake).dataset(self.dataset)


def finish_unit(
    dataset: Dataset,
    unit: Unit,
    *,
    rows_in: int | Callable[[], int],
    accepted: Iterable[pa.Table],
    rejects: Sequence[pa.Table] = (),
    keep_empty: bool = False,
    row_group_rows: int = ROW_GROUP_ROWS,
    tally: Callable[[pa.Table], Mapping[str, int]] | None = None,
) -> UnitRecord:
    """Write the shards of a finished unit and return its record; the runner writes that into the ledger.

    What was taken down from the lake is not written, whatever brought it: such a row becomes a reject of reason
    `takedown`, and a rejected one loses its link.

    Args:
        rows_in: number of rows that were read; where it is known only at the end, what returns it then.
        accepted: one table per shard, in order; each is released before the next one is requested. An empty table
            leaves no shard unless `keep_empty` is set.
        rejects: dropped rows as REJECTS tables, written as one shard. They are read last, so that a list may grow
            while `accepted` is consumed.
        keep_empty: whether to write empty shards too, for pipeline steps where a shard's place carries meaning.
        row_group_rows: rows per row group of the shards; `NARROW_GROUP_ROWS` suits rows without images.
        tally: counts the accepted rows of a table (`tally`); only for pipeline steps of few units.
    """
    tombstones = read_tombstones(dataset.lake_uri)
    shards, languages, tallies, removed = [], [], [], []
    first = 0
    for table in accepted:
        if not (keep_empty or table.num_rows):
            continue
        listed = tombstones.names(table)
        if listed.any():
            removed.append(taken_down(table, np.flatnonzero(listed), unit.id, first))
            table = table.filter(pa.array(~listed))
        first += len(listed)
        shards.append(dataset.write_shard(table, row_group_rows))
        languages.append(count(table["language"]))
        tallies.append(tally(table) if tally is not None else {})
    dropped = pa.concat_tables([REJECTS.empty_table(), *rejects])
    named = linked(dropped, tombstones)
    gone = pa.concat_tables([without_links(dropped, named) if named.any() else dropped, *removed])
    return UnitRecord(
        unit_id=unit.id,
        index=unit.index,
        input_digest=str(unit.payload["input_digest"]),
        rows_in=rows_in if isinstance(rows_in, int) else rows_in(),
        shards=tuple(shards),
        rejects=(dataset.write_rejects(gone),) if gone.num_rows else (),
        rejects_by_reason=count(gone["reason"]),
        rows_by_language=total(languages),
        tally=total(tallies),
    )
