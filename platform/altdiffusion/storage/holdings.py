"""Search for the rows of a lake that a list of row ids, images and links means, by the columns that identify rows.

A list names a row by its id, by the SHA-256 of its image, or by its link: the published one, or the one to which
redirects led. Not every kind of dataset has all these columns. What a kind lacks is looked up in other kinds: links and
images give the ids of a link, images give the ids whose redirects led to a link, and images and datasets made from them
give the ids of an image. Shards that versions share are read once, several at a time, and only those columns of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.errors import AltDiffusionError
from altdiffusion.records import REJECTS, SCHEMAS
from altdiffusion.storage import files
from altdiffusion.storage.dataset import ROLES, Dataset, Lake, Role, Version
from altdiffusion.storage.row_keys import IndexedFiles, RowKeys, keys_of_list, keys_of_rows
from altdiffusion.storage.shard_columns import read_columns, read_some_rows
from altdiffusion.storage.shards import ShardInfo
from altdiffusion.storage.tombstones import Tombstones

THREADS = 16
"""Requests to an object store at a time. On a disk more threads than processors only wait for each other."""
BUILD_FROM = 1_000_000
"""Rows that no index covers from which on a question that reads them indexes them."""
_AT_ONCE = 256
_WAITING = 1024
NAMING = ("sample_id", "url", "final_url", "image_sha256")
"""Columns by which a list can name a row; the kind of a dataset decides which of them it has."""
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
T = TypeVar("T")
R = TypeVar("R")
_NONE: Rows = np.zeros(0, np.int64)


class Wanted(Protocol):
    """A list of wanted rows."""

    @property
    def sample_ids(self) -> pa.Array:
        """int64: rows by id."""

    @property
    def images(self) -> pa.Array:
        """string: rows by the SHA-256 (hex) of their image."""

    def links(self, urls: pa.ChunkedArray) -> Mask:
        """Return which of these links the list names."""


@dataclass(frozen=True, kw_only=True)
class File:
    """A shard of accepted or of rejected rows, and its columns that identify rows."""

    folder_uri: str
    role: Role
    info: ShardInfo
    columns: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str]:
        """The identity of the file, since versions share files."""
        return self.folder_uri, self.info.sha256


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """The positions of the wanted rows."""

    rows: Mapping[tuple[str, str], Rows]
    """Row numbers by file; files without any are left out."""
    linked: Rows
    """Ids, ascending, of the rows whose link is listed."""
    led: Rows
    """Ids, ascending, of the rows whose link was redirected to a listed one."""
    imaged: Rows
    """Ids, ascending, of the rows whose image is listed."""
    unreadable: Mapping[tuple[str, str], AltDiffusionError]
    """Files that are missing or damaged, so that their rows are not known."""
    damaged: tuple[AltDiffusionError, ...] = ()
    """Manifests that cannot be read, so that the rows of their versions are not known."""
    versions: tuple[Version, ...] = ()
    """All versions that were searched."""

    @property
    def pictured(self) -> Rows:
        """Ids, ascending, of the rows whose image is listed, or whose image a listed link led to."""
        return np.union1d(self.imaged, self.led)

    def of(self, version: Version, role: Role = "shards") -> list[tuple[int, Rows]]:
        """Return (number of the shard, row numbers in it) for every shard that holds wanted rows.

        Raises:
            AltDiffusionError: a file of the version could not be read.
        """
        for file in _files(version, role):
            if file.key in self.unreadable:
                raise self.unreadable[file.key]
        return self.readable(version, role)

    def readable(self, version: Version, role: Role = "shards") -> list[tuple[int, Rows]]:
        """Return the same for the files that could be read."""
        found = enumerate(self.rows.get(file.key) for file in _files(version, role))
        return [(index, rows) for index, rows in found if rows is not None]

    def numbers(self, version: Version) -> Rows:
        """Return the numbers, ascending, of the wanted rows in those shards of a version that could be read."""
        found = [rows + version.shard_starts[index] for index, rows in self.readable(version)]
        return np.concatenate([_NONE, *found])


def all_versions(lake: Lake, damaged: list[AltDiffusionError]) -> Iterator[Version]:
    """Yield every version of every dataset of a lake; what cannot be read is added to `damaged`, and not yielded."""
    for name in lake.names():
        try:
            dataset = lake.dataset(name)
            digests = dataset.digests()
        except AltDiffusionError as error:
            damaged.append(error)
            continue
        for start in range(0, len(digests), _AT_ONCE):
            yield from _opened(dataset, digests[start : start + _AT_ONCE], damaged)


def _opened(dataset: Dataset, digests: Sequence[str], damaged: list[AltDiffusionError]) -> Iterator[Version]:
    """Yield versions with their tables of shards; an object store is asked for all manifests, then for all tables."""
    manifests = dataset.open_many(digests)
    versions = [version for version in manifests if isinstance(version, Version)]
    damaged += [error for error in manifests if isinstance(error, AltDiffusionError)]
    tables = files.read_many([version.table_uri for version in versions])
    for version, data in zip(versions, tables, strict=True):
        try:
            version.load_table(data)
        except AltDiffusionError as error:
            damaged.append(error)
            continue
        yield version


def search(
    lake: Lake,
    wanted: Wanted,
    *,
    threads: int | None = None,
    listed: Tombstones | None = None,
    build_from: int = BUILD_FROM,
) -> Holdings:
    """Search the whole lake: accepted rows, and rejected ones that still have their link.

    Memory holds those columns of `threads` shards, and the rows found.

    Args:
        threads: shards that are read at a time; None chooses by the storage.
        listed: the same list as hashes, for questions that the index of rows may answer: then only the shards that it
            does not cover are read whole. Domains need every shard. None for what removes rows: it reads all of them.
        build_from: number of rows that the index does not cover from which on they are added to it.
    """
    threads = threads or (min(THREADS, os.cpu_count() or 1) if files.is_local(lake.uri) else THREADS)
    distinct: dict[tuple[str, str], File] = {}
    damaged: list[AltDiffusionError] = []
    versions = tuple(all_versions(lake, damaged))
    for version in versions:
        for role in ROLES:
            distinct.update((file.key, file) for file in _files(version, role))
    index = IndexedFiles(lake.uri, distinct.values()) if listed is not None and not len(listed.domains) else None
    found_at = index.places(keys_of_list(listed)) if index is not None and listed is not None else {}
    rows: dict[tuple[str, str], Rows] = {}
    unreadable: dict[tuple[str, str], AltDiffusionError] = {}
    linked, led, pictured = [_NONE], [_NONE], [_NONE]

    def keep(file: File, found: Rows) -> None:
        if len(found):
            rows[file.key] = np.union1d(rows.get(file.key, _NONE), found)

    def take(file: File, direct: _Direct | AltDiffusionError) -> None:
        if isinstance(direct, AltDiffusionError):
            unreadable[file.key] = direct
            return
        keep(file, direct.rows)
        linked.append(direct.linked)
        led.append(direct.led)
        pictured.append(direct.pictured)

    with ThreadPoolExecutor(threads) as pool:
        hit = [file for file in distinct.values() if file.key in found_at]
        for file, direct in _each(pool, lambda file: _direct_at(file, wanted, found_at[file.key]), hit):
            take(file, direct)
        whole = [file for file in distinct.values() if index is None or not index.covers(file.key)]
        builder = index.builder() if index is not None and sum(file.info.rows for file in whole) >= build_from else None
        keyed, at_once = builder is not None, threads if builder is not None else _WAITING  # keys take memory
        for file, direct in _each(pool, lambda file: _direct(file, wanted, keyed=keyed), whole, at_once):
            take(file, direct)
            if builder is not None and isinstance(direct, _Direct):
                builder.add(file.key, file.info.rows, direct.keys)
        if builder is not None:
            builder.finish()
        by_link, by_final, by_image = (np.unique(np.concatenate(ids)) for ids in (linked, led, pictured))

        def unnamed(file: File) -> Rows:
            """Return the ids that this file's own columns cannot identify."""
            lacking = (("url", by_link), ("final_url", by_final), ("image_sha256", by_image))
            return np.concatenate([_NONE, *(ids for column, ids in lacking if column not in file.columns)])

        indirect = [
            file
            for file in distinct.values()
            if "sample_id" in file.columns and file.key not in unreadable and len(unnamed(file))
        ]
        ids = np.concatenate([by_link, by_final, by_image])
        by_id = index.places({"sample_id": ids.view(np.uint64)}) if index is not None and len(ids) else {}

        def named_by_id(file: File) -> Rows | AltDiffusionError:
            if index is not None and index.covers(file.key):
                return _by_id(file, unnamed(file), by_id.get(file.key, {}).get("sample_id", _NONE))
            return _by_id(file, unnamed(file))

        for file, found in _each(pool, named_by_id, indirect):
            if isinstance(found, AltDiffusionError):
                unreadable[file.key] = found
            else:
                keep(file, found)
    return Holdings(
        rows=rows,
        linked=by_link,
        led=by_final,
        imaged=by_image,
        unreadable=unreadable,
        damaged=tuple(damaged),
        versions=versions,
    )


@dataclass(frozen=True, kw_only=True)
class _Direct:
    """Rows that a file's own columns identify, and ids of all its rows whose link, last link or image is listed."""

    rows: Rows
    linked: Rows
    led: Rows
    pictured: Rows
    keys: RowKeys = field(default_factory=dict)
    """Keys of all its rows for the index, where they were asked for."""


def _files(version: Version, role: Role) -> Iterator[File]:
    """Return the files of a version, in its order."""
    schema = SCHEMAS[version.manifest.kind] if role == "shards" else REJECTS
    columns = tuple(name for name in NAMING if name in schema.names)
    folder = files.join(version.folder_uri, role)
    return (File(folder_uri=folder, role=role, info=info, columns=columns) for info in version.infos(role))


def _direct(file: File, wanted: Wanted, *, keyed: bool = False) -> _Direct | AltDiffusionError:
    """Return what the columns of all rows of a file identify."""
    if not file.columns or not file.info.rows:
        return _Direct(rows=_NONE, linked=_NONE, led=_NONE, pictured=_NONE)
    try:
        table = read_columns(file.folder_uri, file.info, file.columns)
    except AltDiffusionError as error:
        return error
    found = _matches(file, table, wanted, np.arange(table.num_rows, dtype=np.int64))
    return replace(found, keys=keys_of_rows(table)) if keyed else found


def _direct_at(file: File, wanted: Wanted, places: Mapping[str, Rows]) -> _Direct | AltDiffusionError:
    """Return the same of the rows that the index names by column; it is the shard's own values that decide."""
    rows = np.unique(np.concatenate([*places.values()]))
    needed = {*places, "sample_id", *(["url"] if file.role == "rejects" else [])}
    try:
        columns = [name for name in file.columns if name in needed]
        return _matches(file, read_some_rows(file.folder_uri, file.info, columns, rows), wanted, rows)
    except AltDiffusionError as error:
        return error


def _matches(file: File, table: pa.Table, wanted: Wanted, numbers: Rows) -> _Direct:
    """Return what the columns of a table identify, of which `numbers` are the rows in the file."""
    named, by_link, by_final, by_image = (np.zeros(table.num_rows, bool) for _ in range(4))
    if "sample_id" in table.column_names:
        named = _listed(table["sample_id"], wanted.sample_ids)
    if "url" in table.column_names:
        by_link = wanted.links(table["url"])
    if "final_url" in table.column_names:  # older shards of images do not have it
        by_final = wanted.links(table["final_url"])
    if "image_sha256" in table.column_names:
        by_image = _listed(table["image_sha256"], wanted.images)

    def ids(mask: Mask) -> Rows:
        if "sample_id" not in file.columns:
            return _NONE
        return np.asarray(table["sample_id"].filter(pa.array(mask)).drop_null().to_numpy(), np.int64)

    rows = numbers[np.flatnonzero((named | by_link | by_final | by_image) & _holds(file, table))]
    return _Direct(rows=rows, linked=ids(by_link), led=ids(by_final), pictured=ids(by_image))


def _by_id(file: File, ids: Rows, places: Rows | None = None) -> Rows | AltDiffusionError:
    """Return the rows of a file with these ids; `places` are the rows that alone may have them, if that is known."""
    if places is not None and not len(places):
        return _NONE
    names = ["sample_id", *(["url"] if file.role == "rejects" else [])]
    try:
        if places is None:
            table = read_columns(file.folder_uri, file.info, names)
            places = np.arange(table.num_rows, dtype=np.int64)
        else:
            table = read_some_rows(file.folder_uri, file.info, names, places)
    except AltDiffusionError as error:
        return error
    return places[np.flatnonzero(_listed(table["sample_id"], pa.array(ids)) & _holds(file, table))]


def _holds(file: File, table: pa.Table) -> Mask:
    """Return which rows hold more than their id; a rejected row does where it has its link."""
    if file.role == "shards":
        return np.ones(table.num_rows, bool)
    return np.asarray(table["url"].is_valid().to_numpy(), bool)


def _listed(column: pa.ChunkedArray, values: pa.Array) -> Mask:
    return np.asarray(pc.is_in(column, value_set=values).to_numpy(), bool)


def _each(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], at_once: int = _WAITING
) -> Iterator[tuple[T, R]]:
    """Yield items and their results in order, with a limited number of waiting items."""
    waiting = iter(items)
    while batch := list(islice(waiting, at_once)):
        yield from zip(batch, pool.map(function, batch), strict=True)
