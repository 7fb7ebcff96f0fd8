"""Takedown: the next version of a dataset without certain rows, and how those rows are kept out of its head.

Only the shards that lose rows are rewritten, each in its place; all others are shared. A shard that loses all rows
stays as an empty one, because datasets made from it refer to shards by their place. The rejects of the version before
are kept, but the links of the rows in question are erased there too. The removed rows become rejects of reason
`takedown` with their id and the SHA-256 of their image, without link or caption.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from altdiffusion.records import REJECTS
from altdiffusion.refs import Ref
from altdiffusion.storage import files, shards
from altdiffusion.storage.cleansing import REASON, taken_down, without_links
from altdiffusion.storage.dataset import Dataset, Version
from altdiffusion.storage.holdings import Holdings, Rows
from altdiffusion.storage.ledger import UnitRecord
from altdiffusion.storage.shards import ShardInfo
from altdiffusion.storage.summaries import Summary, read_summaries
from altdiffusion.tally import TALLIES


@dataclass(frozen=True, kw_only=True)
class Removal:
    """The effect of a takedown on one version."""

    before: Version
    after: Version | None
    """None where the version holds none of the rows."""
    rows: int
    links: int
    """Number of rejected rows whose link was erased."""
    rewritten: int
    """Number of rewritten shards; all others are shared."""
    already: bool
    """Whether `after` existed before this takedown."""
    is_head: bool
    """Whether the dataset's bare name means `after`."""


def remove(dataset: Dataset, before: Version, holdings: Holdings, list_sha256: str) -> Removal:
    """Publish the version after `before`; the head moves there if `before` is the head.

    The same version and the same list give the same version after, whether it exists already or not.

    Args:
        holdings: the positions of the rows (`holdings.search`).
        list_sha256: SHA-256 (hex) of the file that lists the rows.

    Raises:
        AltDiffusionError: a shard that may hold such rows is missing or damaged.
    """
    accepted, rejected = dict(holdings.of(before)), dict(holdings.of(before, "rejects"))
    if not accepted and not rejected:
        return Removal(before=before, after=None, rows=0, links=0, rewritten=0, already=False, is_head=False)
    infos, rejects = list(before.shards), list(before.rejects)
    languages = Counter(before.manifest.rows_by_language)
    counts = Counter(before.manifest.tally)
    gone: list[pa.Table] = []
    for index, rows in accepted.items():
        table = before.read_shard(index)
        stays = np.ones(table.num_rows, bool)
        stays[rows] = False
        infos[index] = dataset.write_shard(table.filter(pa.array(stays)), infos[index].row_group_rows)
        removed = table.take(pa.array(rows))
        languages.subtract(Counter(removed["language"].to_pylist()))
        if before.manifest.tally and before.manifest.kind in TALLIES:
            counts.subtract(TALLIES[before.manifest.kind](removed))
        gone.append(taken_down(table, rows, REASON, before.shard_starts[index]))
    for index, rows in rejected.items():
        rejects[index] = _without_links(dataset, before.rejects[index], rows)
    count = sum(table.num_rows for table in gone)
    if gone:
        rejects.append(dataset.write_rejects(pa.concat_tables(gone)))
    by_reason = Counter(before.manifest.rejects_by_reason) + Counter({REASON: count})
    config = {REASON: list_sha256}
    record = UnitRecord(
        unit_id=REASON,
        index=0,
        input_digest=before.ref.digest,
        rows_in=before.rows + sum(before.manifest.rejects_by_reason.values()),
        shards=tuple(infos),
        rejects=tuple(rejects),
        rejects_by_reason=dict(by_reason),
        rows_by_language={language: rows for language, rows in languages.items() if rows},
        tally={key: rows for key, rows in counts.items() if rows},
    )
    known = set(dataset.digests())
    head = dataset.head()
    moves = head is None or head.ref == before.ref
    after = dataset.publish(
        kind=before.manifest.kind,
        records=[record],
        parents=[before.ref, Ref("blocklist", REASON, list_sha256)],
        config=config,
        fingerprint=files.sha256_hex(files.canonical_json(config)),
        made_by=REASON,
        is_head=moves,
    )
    return Removal(
        before=before,
        after=after,
        rows=count,
        links=sum(len(rows) for rows in rejected.values()),
        rewritten=len(accepted),
        already=after.ref.digest in known,
        is_head=moves or (head is not None and head.ref == after.ref),
    )


def after_takedowns(dataset: Dataset, version: Version) -> Version:
    """Return the version that replaces this one after takedowns; the version itself where there were none.

    A job that runs again finds the version that it once made. If that became the head again, the removed rows would
    be back. Where several series of takedowns started from it, the one with the head is used, else the one that removed
    most rows.
    """
    after: dict[Ref, list[Summary]] = {}
    for later in read_summaries(dataset).whole().values():
        if REASON in later.config:
            after.setdefault(Ref.parse(later.parents[0]), []).append(later)
    last: list[Version] = []
    waiting = [version]
    while waiting:
        one = waiting.pop()
        waiting += [dataset.open(later.digest) for later in after.get(one.ref, ())]
        if one.ref not in after:
            last.append(one)
    head = dataset.head() if len(last) > 1 else None
    return min(
        last, key=lambda v: (v.ref != (head and head.ref), -v.manifest.rejects_by_reason.get(REASON, 0), v.ref.digest)
    )


def _without_links(dataset: Dataset, info: ShardInfo, rows: Rows) -> ShardInfo:
    """Write the same rejects without link and detail in these rows."""
    table = shards.read_table(files.join(dataset.folder_uri, "rejects"), info.sha256, REJECTS)
    listed = np.zeros(table.num_rows, bool)
    listed[rows] = True
    return dataset.write_rejects(without_links(table, listed))
