"""The rows that only one of two versions holds, by their id. Shards that both versions share are not read twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.storage import files
from altdiffusion.storage.dataset import Version
from altdiffusion.storage.shard_columns import read_columns
from altdiffusion.storage.shards import ShardInfo

_KEYS = ("sample_id", "id")


@dataclass(frozen=True, kw_only=True)
class RowDifference:
    """The ids that only one version holds; null ids are left out."""

    only_a: pa.Array
    only_b: pa.Array

    def to_json(self, shown: int) -> dict[str, Any]:
        return {
            f"only_{side}": {"rows": len(ids), "ids": ids.slice(0, shown).to_pylist()}
            for side, ids in (("a", self.only_a), ("b", self.only_b))
        }


def key_of(a: Version, b: Version) -> str | None:
    """Return the column that names rows in both versions; None where there is none."""
    return next((key for key in _KEYS if key in a.schema_names and key in b.schema_names), None)


def unshared_rows(a: Version, b: Version) -> int:
    """Return how many rows are in shards of one version alone: the larger of both sides."""
    return max(sum(info.rows for info in _without(one, other)) for one, other in ((a, b), (b, a)))


def row_difference(a: Version, b: Version, key: str) -> RowDifference:
    """Return the ids that only one of two versions of a dataset holds, ascending.

    Raises:
        AltDiffusionError: a shard is missing or damaged.
    """
    ids_a, ids_b = _ids(a, _without(a, b), key), _ids(b, _without(b, a), key)
    return RowDifference(only_a=_only(ids_a, ids_b, a, b, key), only_b=_only(ids_b, ids_a, b, a, key))


def _without(one: Version, other: Version) -> list[ShardInfo]:
    shared = _shared(one, other)
    return [info for info in one.shards if info.sha256 not in shared]


def _shared(one: Version, other: Version) -> set[str]:
    if one.folder_uri != other.folder_uri:
        return set()
    return {info.sha256 for info in one.shards} & {info.sha256 for info in other.shards}


def _ids(version: Version, infos: Iterable[ShardInfo], key: str) -> pa.Array:
    chunks: list[pa.Array] = []
    for info in infos:
        chunks += _column(version, info, key).chunks
    whole = pa.concat_arrays(chunks) if chunks else pa.array([], pa.int64() if key == "sample_id" else pa.string())
    return pc.unique(whole.drop_null())


def _column(version: Version, info: ShardInfo, key: str) -> pa.ChunkedArray:
    return read_columns(files.join(version.folder_uri, "shards"), info, [key])[key]


def _only(mine: pa.Array, theirs: pa.Array, a: Version, b: Version, key: str) -> pa.Array:
    """Return those of my ids that neither their own shards nor the shared ones hold."""
    left = _minus(mine, theirs)
    shared: Sequence[ShardInfo] = [info for info in b.shards if info.sha256 in _shared(a, b)]
    for info in shared:
        if not len(left):
            break
        left = _minus(left, _column(b, info, key).combine_chunks())
    return left.take(pc.sort_indices(left))


def _minus(ids: pa.Array, gone: pa.Array) -> pa.Array:
    return ids.filter(pc.invert(pc.is_in(ids, value_set=gone)))
