"""Keys of rows in the index: by the columns that identify a row, for whole shards and for a list of wanted rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from altdiffusion.storage import files
from altdiffusion.storage.row_index import I64, U32, U64, Builder, RowIndex
from altdiffusion.storage.tombstones import Digests, Tombstones, digests_of, digests_of_hex
from altdiffusion.urls import url_keys

RowKeys: TypeAlias = Mapping[str, tuple[U64, U32]]
"""By column: the keys, uint64 [N], and the rows that have them, uint32 [N]. Rows without a value are left out."""


def keys_of_rows(table: pa.Table) -> RowKeys:
    """Return the keys of rows, by those of `holdings.NAMING` that a table has."""
    found: dict[str, tuple[U64, U32]] = {}
    for name in table.column_names:
        column = table[name]
        rows = np.flatnonzero(np.asarray(column.is_valid().to_numpy(), bool)).astype(np.uint32)
        column = column.drop_null()
        if name == "sample_id":
            keys = np.asarray(column.to_numpy(), np.int64).view(np.uint64)
        elif name == "image_sha256":
            keys = _prefixes(digests_of_hex(column.to_pylist()))
        else:
            keys = _prefixes(digests_of(url_keys(column).to_pylist()))
        found[name] = (keys, rows)
    return found


def keys_of_list(listed: Tombstones) -> dict[str, U64]:
    """Return the keys of what a list names, by column; domains have none."""
    links = _prefixes(listed.links)
    return {
        "sample_id": np.asarray(listed.sample_ids, np.int64).view(np.uint64),
        "url": links,
        "final_url": links,
        "image_sha256": _prefixes(listed.images),
    }


def _prefixes(digests: Digests) -> U64:
    """Return the first 8 bytes of SHA-256 digests, S32 [N], as numbers."""
    whole: npt.NDArray[np.uint8] = np.ascontiguousarray(digests.astype("S32")).view(np.uint8).reshape(-1, 32)
    return np.ascontiguousarray(whole[:, :8]).view(">u8").reshape(-1).astype(np.uint64)


class _File(Protocol):
    @property
    def key(self) -> tuple[str, str]: ...


class IndexedFiles:
    """The index of rows for the files of a search, by their own keys (`holdings.File.key`).

    A file that is no longer in its folder is not covered: reading it then reports that.
    """

    def __init__(self, lake_uri: str, searched: Iterable[_File]) -> None:
        self._root = f"{lake_uri}/"
        known = [file.key for file in searched]
        there = {
            (folder, name.removesuffix(".parquet"))
            for folder in sorted({folder for folder, _ in known})
            for name in files.list_names(folder)
        }
        self._index = RowIndex(lake_uri, [self._below(key) for key in known if key in there])
        self._covered = self._index.covered

    def _below(self, key: tuple[str, str]) -> tuple[str, str]:
        return key[0].removeprefix(self._root), key[1]

    def covers(self, key: tuple[str, str]) -> bool:
        """Return whether `places` answers for a file."""
        return self._below(key) in self._covered

    def places(self, keys: Mapping[str, U64]) -> dict[tuple[str, str], dict[str, I64]]:
        """Return the rows that may have these keys, by file and column; a damaged part no longer covers its files."""
        found = self._index.find(keys)
        self._covered = self._index.covered
        return {(f"{self._root}{folder}", sha256): rows for (folder, sha256), rows in found.items()}

    def builder(self) -> _BuilderOfFiles:
        """Return what adds files to the index."""
        return _BuilderOfFiles(self._index.builder(), self._below)


class _BuilderOfFiles:
    def __init__(self, builder: Builder, below: Callable[[tuple[str, str]], tuple[str, str]]) -> None:
        self._builder, self._below = builder, below

    def add(self, key: tuple[str, str], rows: int, keys: RowKeys) -> None:
        self._builder.add(self._below(key), rows, keys)

    def finish(self) -> None:
        self._builder.finish()
