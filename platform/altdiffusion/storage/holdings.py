"""Search for the rows of a lake that a list of row ids, images and links means, by the columns that identify rows.

A list names a row by its id, by the SHA-256 of its image, or by its link: the published one, or the one to which
redirects led. Not every kind of dataset has all these columns. What a kind lacks is looked up in other kinds: links and
images give the ids of a link, images give the ids whose redirects led to a link, and images and datasets made from them
give the ids of an image. Shards that versions share are read once, several at a time, and only those columns of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
from altdiffusion.storage.shard_columns import read_columns
from altdiffusion.storage.shards import ShardInfo

THREADS = 16
_AT_ONCE = 256
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


def search(lake: Lake, wanted: Wanted, *, threads: int = THREADS) -> Holdings:
    """Search the whole lake: accepted rows, and rejected ones that still have their link.

    Memory holds those columns of `threads` shards, and the rows found.
    """
    distinct: dict[tuple[str, str], File] = {}
    damaged: list[AltDiffusionError] = []
    versions = tuple(all_versions(lake, damaged))
    for version in versions:
        for role in ROLES:
            distinct.update((file.key, file) for file in _files(version, role))
    rows: dict[tuple[str, str], Rows] = {}
    unreadable: dict[tuple[str, str], AltDiffusionError] = {}
    linked, led, pictured = [_NONE], [_NONE], [_NONE]

    def keep(file: File, found: Rows) -> None:
        if len(found):
            rows[file.key] = np.union1d(rows.get(file.key, _NONE), found)

    with ThreadPoolExecutor(threads) as pool:
        for file, direct in _each(pool, lambda file: _direct(file, wanted), distinct.values()):
            if isinstance(direct, AltDiffusionError):
                unreadable[file.key] = direct
            else:
                keep(file, direct.rows)
                linked.append(direct.linked)
                led.append(direct.led)
                pictured.append(direct.pictured)
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
        for file, found in _each(pool, lambda file: _by_id(file, unnamed(file)), indirect):
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


def _files(version: Version, role: Role) -> Iterator[File]:
    """Return the files of a version, in its order."""
    schema = SCHEMAS[version.manifest.kind] if role == "shards" else REJECTS
    columns = tuple(name for name in NAMING if name in schema.names)
    folder = files.join(version.folder_uri, role)
    return (File(folder_uri=folder, role=role, info=info, columns=columns) for info in version.infos(role))


def _direct(file: File, wanted: Wanted) -> _Direct | AltDiffusionError:
    if not file.columns or not file.info.rows:
        return _Direct(rows=_NONE, linked=_NONE, led=_NONE, pictured=_NONE)
    try:
        table = read_columns(file.folder_uri, file.info, file.columns)
    except AltDiffusionError as error:
        return error
    named, by_link, by_final, by_image = (np.zeros(table.num_rows, bool) for _ in range(4))
    if "sample_id" in file.columns:
        named = _listed(table["sample_id"], wanted.sample_ids)
    if "url" in file.columns:
        by_link = wanted.links(table["url"])
    if "final_url" in table.column_names:  # older shards of images do not have it
        by_final = wanted.links(table["final_url"])
    if "image_sha256" in file.columns:
        by_image = _listed(table["image_sha256"], wanted.images)

    def ids(mask: Mask) -> Rows:
        if "sample_id" not in file.columns:
            return _NONE
        return np.asarray(table["sample_id"].filter(pa.array(mask)).drop_null().to_numpy(), np.int64)

    rows = np.flatnonzero((named | by_link | by_final | by_image) & _holds(file, table))
    return _Direct(rows=rows, linked=ids(by_link), led=ids(by_final), pictured=ids(by_image))


def _by_id(file: File, ids: Rows) -> Rows | AltDiffusionError:
    try:
        names = ["sample_id", *(["url"] if file.role == "rejects" else [])]
        table = read_columns(file.folder_uri, file.info, names)
    except AltDiffusionError as error:
        return error
    return np.flatnonzero(_listed(table["sample_id"], pa.array(ids)) & _holds(file, table))


def _holds(file: File, table: pa.Table) -> Mask:
    """Return which rows hold more than their id; a rejected row does where it has its link."""
    if file.role == "shards":
        return np.ones(table.num_rows, bool)
    return np.asarray(table["url"].is_valid().to_numpy(), bool)


def _listed(column: pa.ChunkedArray, values: pa.Array) -> Mask:
    return np.asarray(pc.is_in(column, value_set=values).to_numpy(), bool)


def _each(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
    """Yield items and their results in order, with a limited number of waiting items."""
    waiting = iter(items)
    while batch := list(islice(waiting, 1024)):
        yield from zip(batch, pool.map(function, batch), strict=True)
