"""Rows that were taken down are kept out of what is written, and removed from what was recorded before the takedown.

A row that a tombstone names is dropped from the accepted rows and becomes a reject of reason `takedown`, with its id
and its image's SHA-256 but without its link or caption. A rejected row keeps its reason and loses its link and detail.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.records import REJECTS, SCHEMAS, Kind
from altdiffusion.storage import files, shards
from altdiffusion.storage.dataset import ROLES, Dataset, Version
from altdiffusion.storage.documents import optional_document
from altdiffusion.storage.ledger import Ledger, UnitRecord
from altdiffusion.storage.shard_columns import read_columns
from altdiffusion.storage.shards import ShardInfo
from altdiffusion.storage.tombstones import COLUMNS, Mask, Tombstones, read_file, read_tombstones, tombstone_names
from altdiffusion.tally import TALLIES

REASON = "takedown"
IMAGE = "sha256:"
"""Prefix of the image's digest in the detail of a reject that was taken down."""
CHECKED = "takedowns.json"
"""File next to a manifest: the tombstones of which the version is known to hold none. No digest covers it."""
THREADS = 16


def taken_down(table: pa.Table, rows: npt.NDArray[np.int64], unit_id: str, first: int = 0) -> pa.Table:
    """Return the REJECTS rows of rows that were taken down, with their identity but without their content.

    Args:
        table: any accepted rows.
        rows: int64 [N], the rows of the table.
        first: number of the table's first row, to which the reject's row number is added.
    """
    count, names = len(rows), table.column_names
    gone = table.select([name for name in ("sample_id", "language", "image_sha256") if name in names])
    gone = gone.take(pa.array(rows))
    hashed: Any = pa.nulls(count, pa.string())
    if "image_sha256" in names:
        hashed = pc.binary_join_element_wise(IMAGE, gone["image_sha256"], "")
    columns = {
        "unit_id": pa.array([unit_id] * count, pa.string()),
        "row": pa.array(rows + first),
        "sample_id": gone["sample_id"] if "sample_id" in names else pa.nulls(count, pa.int64()),
        "url": pa.nulls(count, pa.string()),
        "language": gone["language"] if "language" in names else pa.nulls(count, pa.string()),
        "reason": pa.array([REASON] * count, pa.string()),
        "detail": hashed,
    }
    return pa.table([columns[field.name] for field in REJECTS], schema=REJECTS)


def without_links(rejects: pa.Table, listed: Mask) -> pa.Table:
    """Return REJECTS rows without link and detail (which may quote the caption) in the listed ones."""
    for name in ("url", "detail"):
        at = rejects.schema.get_field_index(name)
        rejects = rejects.set_column(at, rejects.schema.field(at), pc.if_else(pa.array(listed), None, rejects[name]))
    return rejects


def linked(rejects: pa.Table, tombstones: Tombstones) -> Mask:
    """Return which rejected rows are named and still have their link, bool [N]."""
    listed = tombstones.names(rejects)
    listed &= np.asarray(rejects["url"].is_valid().to_numpy(), bool)
    return listed


def cleansed(dataset: Dataset, kind: Kind, record: UnitRecord, tombstones: Tombstones) -> UnitRecord:
    """Return the record of a unit without the rows that were taken down; the same object where it has none of them.

    The result is what the unit would leave if it ran again: the same shards, and the same rejects.

    Raises:
        AltDiffusionError: a shard is missing or damaged.
    """
    infos, gone = list(record.shards), []
    languages, tally = Counter(record.rows_by_language), Counter(record.tally)
    first = 0
    for place, info in enumerate(record.shards):
        rows = _named(dataset, "shards", kind, info, tombstones)
        if len(rows):
            table = shards.read_table(files.join(dataset.folder_uri, "shards"), info.sha256, SCHEMAS[kind])
            infos[place] = dataset.write_shard(_without(table, rows), info.row_group_rows)
            removed = table.take(pa.array(rows))
            languages.subtract(removed["language"].to_pylist())
            if record.tally and kind in TALLIES:
                tally.subtract(TALLIES[kind](removed))
            gone.append(taken_down(table, rows, record.unit_id, first))
        first += info.rows
    rejects = _rejects(dataset, record, gone, tombstones)
    if not gone and rejects == record.rejects:
        return record
    reasons = Counter(record.rejects_by_reason) + Counter({REASON: sum(table.num_rows for table in gone)})
    return replace(
        record,
        shards=tuple(infos),
        rejects=rejects,
        rejects_by_reason=dict(sorted(reasons.items())),
        rows_by_language=_positive(languages),
        tally=_positive(tally),
    )


def _rejects(
    dataset: Dataset, record: UnitRecord, gone: Sequence[pa.Table], tombstones: Tombstones
) -> tuple[ShardInfo, ...]:
    """Write the rejects of a unit with those of the removed rows, and without the links of named ones."""
    folder = files.join(dataset.folder_uri, "rejects")
    infos = list(record.rejects)
    for place, info in enumerate(record.rejects):
        if len(_named(dataset, "rejects", None, info, tombstones)):
            table = shards.read_table(folder, info.sha256, REJECTS)
            infos[place] = dataset.write_rejects(without_links(table, linked(table, tombstones)))
    if gone and len(infos) <= 1:  # as a unit writes them: in one shard
        before = [shards.read_table(folder, info.sha256, REJECTS) for info in infos]
        infos = [dataset.write_rejects(pa.concat_tables([REJECTS.empty_table(), *before, *gone]))]
    elif gone:
        infos.append(dataset.write_rejects(pa.concat_tables(gone)))
    return tuple(infos)


def _without(table: pa.Table, rows: npt.NDArray[np.int64]) -> pa.Table:
    stays = np.ones(table.num_rows, bool)
    stays[rows] = False
    return table.filter(pa.array(stays))


def _positive(counts: Mapping[str, int]) -> dict[str, int]:
    return {key: number for key, number in counts.items() if number}


def _named(
    dataset: Dataset, role: str, kind: Kind | None, info: ShardInfo, tombstones: Tombstones
) -> npt.NDArray[np.int64]:
    """Return the rows of a file that tombstones name; only the columns that identify rows are read."""
    return named_rows(files.join(dataset.folder_uri, role), kind, info, tombstones)


def named_rows(folder_uri: str, kind: Kind | None, info: ShardInfo, tombstones: Tombstones) -> npt.NDArray[np.int64]:
    """Return the rows of one file that tombstones name, int64, ascending.

    Args:
        kind: of accepted rows; None for rejected ones, which count where they have their link.

    Raises:
        AltDiffusionError: the file is missing or damaged.
    """
    schema = REJECTS if kind is None else SCHEMAS[kind]
    columns = [name for name in COLUMNS if name in schema.names]
    if not info.rows or not columns:
        return np.zeros(0, np.int64)
    table = read_columns(folder_uri, info, columns)
    return np.flatnonzero(linked(table, tombstones) if kind is None else tombstones.names(table))


def cleansed_records(
    dataset: Dataset, kind: Kind, records: Iterable[UnitRecord], ledger: Ledger | None = None
) -> Iterator[UnitRecord]:
    """Yield the records of units without what was taken down from the lake; `ledger` is brought up to that.

    In a lake without takedowns, nothing is read. Else the columns that identify rows are, of every shard.

    Raises:
        AltDiffusionError: a shard or the tombstones are missing or damaged.
    """
    tombstones = read_tombstones(dataset.lake_uri)
    if not len(tombstones):
        yield from records
        return
    rest = iter(records)
    with ThreadPoolExecutor(THREADS) as pool:
        while some := list(itertools.islice(rest, 16 * THREADS)):
            clean = pool.map(lambda record: cleansed(dataset, kind, record, tombstones), some)
            for before, after in zip(some, clean, strict=True):
                if ledger is not None and after is not before and ledger.get(before.unit_id) is not None:
                    ledger.replace(after)
                yield after


def is_clean(version: Version) -> bool:
    """Return whether a version holds nothing that was taken down from its lake.

    What was found once is kept next to the manifest, so that only tombstones that are newer cost a reading.

    Raises:
        AltDiffusionError: a shard or the tombstones are missing or damaged.
    """
    names = tombstone_names(version.lake_uri)
    if not names:
        return True
    uri = files.within(version.uri, CHECKED)
    document = optional_document(uri)
    known = set(document.texts("holds_none_of")) if document is not None else set[str]()
    for name in sorted(set(names) - known):
        if not _holds_none(version, read_file(version.lake_uri, name)):
            return False
    if set(names) - known:
        files.write_atomic(uri, files.canonical_json({"holds_none_of": sorted(names)}))
    return True


def _holds_none(version: Version, tombstones: Tombstones) -> bool:
    tasks: list[tuple[str, Kind | None, ShardInfo]] = [
        (files.join(version.folder_uri, role), version.manifest.kind if role == "shards" else None, info)
        for role in ROLES
        for info in version.infos(role)
    ]
    with ThreadPoolExecutor(THREADS) as pool:
        return not any(pool.map(lambda task: len(named_rows(task[0], task[1], task[2], tombstones)), tasks))
