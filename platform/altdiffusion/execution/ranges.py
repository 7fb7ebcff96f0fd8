"""Plans of units that read a published version: row ranges of its shards, or buckets of a hash exchange."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.units import Unit
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Version


def new_unit(
    index: int, reads: Sequence[Any], payload: dict[str, Any], *, name: str = "", digest_of: Sequence[Any] | None = None
) -> Unit:
    """Return a unit whose id and input digest follow from what it reads.

    Args:
        index: the unit's place in the input order.
        reads: digests and row numbers, never a path; the id holds their hash.
        payload: whatever else the worker needs.
        name: text in front of the hash in the id, for people.
        digest_of: what the input digest covers, where that is not `reads`.
    """
    short = files.sha256_hex(files.canonical_json(list(reads)))[:16]
    digest = files.sha256_hex(files.canonical_json(list(reads if digest_of is None else digest_of)))
    parts = [f"{index:08d}", *([name] if name else []), short]
    return Unit(id="-".join(parts), index=index, payload={**payload, "input_digest": digest})


def plan_ranges(version: Version, rows_per_unit: int, *inputs: str) -> list[Unit]:
    """Return units of at most `rows_per_unit` rows that cover every shard of a version, in input order.

    Args:
        inputs: digests of whatever else decides the units' results and is not in a config, such as a model's.
    """
    units: list[Unit] = []
    for number, shard in enumerate(version.shards):
        for start in range(0, shard.rows, rows_per_unit):
            stop = min(start + rows_per_unit, shard.rows)
            payload = {"version": str(version.ref), "shard": number, "start": start, "stop": stop}
            units.append(new_unit(len(units), [shard.sha256, start, stop, *inputs], payload))
    return units


def plan_buckets(version: Version, buckets: int, *inputs: str, chosen: range | None = None) -> list[Unit]:
    """Return one unit per bucket of a hash exchange.

    Every unit of the previous pipeline step wrote one shard per bucket, in bucket order, empty ones included. The unit
    of bucket b therefore reads shards b, b + buckets, b + 2 buckets, … and nothing else, and decides alone.

    Args:
        inputs: as for `plan_ranges`.
        chosen: the buckets to plan; all of them by default.

    Raises:
        AltDiffusionError: the version was not written with this number of buckets.
    """
    if len(version.shards) % buckets:
        raise AltDiffusionError(
            version.ref.short,
            f"has {len(version.shards)} shards, which are not {buckets} buckets per unit",
            "give the number of buckets that it was written with",
        )
    units = []
    for index, bucket in enumerate(range(buckets) if chosen is None else chosen):
        reads = [*(shard.sha256 for shard in version.shards[bucket::buckets]), *inputs]
        units.append(new_unit(index, reads, {"version": str(version.ref), "bucket": bucket, "buckets": buckets}))
    return units
