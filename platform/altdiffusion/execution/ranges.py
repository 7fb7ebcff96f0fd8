"""Units that are row ranges of a version's shards."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.ledger import Unit


def unit_id(index: int, *parts: Any) -> str:
    """A stable id: the unit's place, and a hash of what it reads (digests and row numbers, never a path)."""
    return f"{index:08d}-{files.sha256_hex(files.canonical_json(list(parts)))[:16]}"


def plan_ranges(version: Version, rows_per_unit: int, *inputs: str) -> list[Unit]:
    """Cuts every shard of a version into units of at most `rows_per_unit` rows, in input order.

    Args:
        inputs: digests of what else decides the units' results and is in no config: of a model, say.
    """
    units: list[Unit] = []
    for shard_index, shard in enumerate(version.shards):
        for start in range(0, shard.rows, rows_per_unit):
            stop = min(start + rows_per_unit, shard.rows)
            index = len(units)
            reads = [shard.sha256, start, stop, *inputs]
            payload = {
                "version": str(version.ref),
                "shard": shard_index,
                "start": start,
                "stop": stop,
                "input_digest": files.sha256_hex(files.canonical_json(reads)),
            }
            units.append(Unit(id=unit_id(index, *reads), index=index, payload=payload))
    return units


def open_version(lake_uri: str, unit: Unit, cache: dict[str, Version]) -> Version:
    """The version a unit reads, opened once a worker."""
    ref = str(unit.payload["version"])
    if ref not in cache:
        cache[ref] = Lake(lake_uri).version(ref)
    return cache[ref]


def read_range(lake_uri: str, unit: Unit, cache: dict[str, Version]) -> pa.Table:
    """The rows of a unit made by `plan_ranges`."""
    version = open_version(lake_uri, unit, cache)
    start, stop = int(unit.payload["start"]), int(unit.payload["stop"])
    return version.read_shard(int(unit.payload["shard"])).slice(start, stop - start)
