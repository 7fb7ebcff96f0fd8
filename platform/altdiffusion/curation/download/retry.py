"""A later pass over what a download rejected for a reason that time may fix: images -> images, with more rows.

No work is done twice: the shards of the version before are kept (`carried`), and a unit is a run of its
rejects shards. Rows whose reason `RetryConfig` covers are fetched once more, by the same rules; those that come are
accepted now, those that fail again keep the new reason, all others their old one. A reject names the download unit
and the row in it, which leads back to its link; it keeps both, so that a further pass finds the link too. What was
taken down from the version before stays removed: its rows are not fetched, nor its images under another link.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.curation.config import DownloadConfig, RetryConfig, ScoreConfig
from altdiffusion.curation.download.crawler import Controls, Crawler, Pinned
from altdiffusion.curation.download.download_work import plan_download, unsettled
from altdiffusion.curation.download.outage import controls_of
from altdiffusion.curation.download.spill import Rows
from altdiffusion.curation.web.blocklist import DigestSet
from altdiffusion.curation.web.resolvers import Resolver
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.range_work import RangeWork, finish_unit
from altdiffusion.execution.ranges import new_unit
from altdiffusion.execution.units import Unit
from altdiffusion.records import LINKS, REJECTS
from altdiffusion.storage import files, shards
from altdiffusion.storage.cleansing import IMAGE
from altdiffusion.storage.cleansing import REASON as TAKEDOWN
from altdiffusion.storage.dataset import Version
from altdiffusion.storage.ledger import UnitRecord
from altdiffusion.storage.shard_columns import read_columns
from altdiffusion.tally import tally_images


def plan_retry(links: Version, images: Version, download: DownloadConfig) -> list[Unit]:
    """Return units over the rejects shards of an images version, in order; each has up to `rows_per_unit` rows.

    Args:
        links: the version that `images` was downloaded from.
    """
    units: list[Unit] = []
    first = rows = 0
    for number, shard in enumerate(images.rejects):
        if number > first and rows + shard.rows > download.rows_per_unit:
            units.append(_unit(links, images, len(units), first, number))
            first, rows = number, 0
        rows += shard.rows
    if images.rejects:
        units.append(_unit(links, images, len(units), first, len(images.rejects)))
    return units


def _unit(links: Version, images: Version, index: int, first: int, stop: int) -> Unit:
    reads = [links.ref.digest, *(shard.sha256 for shard in images.rejects[first:stop])]
    return new_unit(index, reads, {"links": str(links.ref), "images": str(images.ref), "first": first, "stop": stop})


def carried(images: Version) -> UnitRecord:
    """Return the record of what a version had already accepted, taken over unchanged and in front."""
    return UnitRecord(
        unit_id=f"carried-{images.ref.digest[:16]}",
        index=-1,
        input_digest=images.ref.digest,
        rows_in=images.rows,
        shards=images.shards,
        rows_by_language=images.manifest.rows_by_language,
        tally=images.manifest.tally,
    )


class RetryWork(RangeWork):
    """Fetches the rows of a run of rejects shards: all of them are rows in, those that came this time are accepted.

    Args:
        believes: whether every failure is taken for the link's own; else links that came before are asked (`outage`).
    """

    def __init__(
        self,
        *,
        lake: str,
        dataset: str,
        download: DownloadConfig,
        retry: RetryConfig,
        score: ScoreConfig | None = None,
        resolver: Resolver | None = None,
        blocklists: Sequence[Pinned] = (),
        believes: bool = True,
    ) -> None:
        self._believes = believes
        super().__init__(lake=lake, dataset=dataset)
        self.download, self.retry = download, retry
        self._crawler = Crawler(download, score or ScoreConfig(), resolver, blocklists)
        self._plans: dict[str, list[Unit]] = {}
        self._taken: dict[str, _Tombstones] = {}

    def setup(self) -> None:
        """Make the fetcher and load scorer and blocklist."""
        self._crawler.setup()

    def close(self) -> None:
        """End the decoders and close connections; the end of the process does the same."""
        self._crawler.close()

    def run(self, unit: Unit) -> UnitRecord:
        """Fetch what may be there by now; write what came and what is still missing."""
        rejects = self._rejects(unit)
        again = self._retriable(rejects, self._tombstones(unit).sample_ids)
        links = self._links(unit, rejects.take(pa.array(again)))
        crawl = self._crawler.crawl(links, gone=self._tombstones(unit).images, controls=self._controls(unit))
        with unsettled(unit, links.num_rows), crawl as crawled:
            rows, reasons, details = crawled.refused()
            return finish_unit(
                self.output,
                unit,
                rows_in=rejects.num_rows,
                accepted=crawled.tables(),
                rejects=[_still_missing(rejects, again, rows, reasons, details)],
                tally=tally_images,
            )

    def _controls(self, unit: Unit) -> Controls | None:
        if self._believes:
            return None
        images = self.version(str(unit.payload["images"]))
        return lambda: controls_of(files.join(images.folder_uri, "shards"), images.shards)

    def _rejects(self, unit: Unit) -> pa.Table:
        images = self.version(str(unit.payload["images"]))
        folder = files.join(images.folder_uri, "rejects")
        infos = images.rejects[int(unit.payload["first"]) : int(unit.payload["stop"])]
        return pa.concat_tables([shards.read_table(folder, info.sha256, REJECTS) for info in infos])

    def _tombstones(self, unit: Unit) -> _Tombstones:
        """Return what was taken down from the unit's images version."""
        ref = str(unit.payload["images"])
        if ref not in self._taken:
            self._taken[ref] = _tombstones(self.version(ref))
        return self._taken[ref]

    def _retriable(self, rejects: pa.Table, gone: pa.Array) -> Rows:
        """Return the rows to fetch again; never one whose link a takedown erased, or whose id it named."""
        reasons = rejects["reason"].combine_chunks().dictionary_encode()
        covered = np.array([self.retry.covers(reason) for reason in reasons.dictionary.to_pylist()], bool)
        erased = np.asarray(rejects["url"].is_null(), bool) | np.asarray(pc.is_in(rejects["sample_id"], gone), bool)
        return np.flatnonzero(covered[reasons.indices.to_numpy()] & ~erased)

    def _links(self, unit: Unit, rejects: pa.Table) -> pa.Table:
        """Return the links of rejected rows, in their order."""
        ref = str(unit.payload["links"])
        if ref not in self._plans:
            self._plans[ref] = plan_download(self.version(ref), self.download.rows_per_unit)
        plan = self._plans[ref]
        ids = rejects["unit_id"].combine_chunks().dictionary_encode()
        numbers = ids.indices.to_numpy()
        tables = [LINKS.empty_table()]
        places = [np.empty(0, np.int64)]
        for number, name in enumerate(ids.dictionary.to_pylist()):
            index = int(name[:8]) if name[:8].isdigit() else -1
            if not 0 <= index < len(plan) or plan[index].id != name:
                raise AltDiffusionError(
                    f"{unit.payload['images']}",
                    f"was not downloaded from {ref} by {self.download.rows_per_unit} rows per unit: its unit {name} is "
                    "not one of them",
                    "give the links version and the rows_per_unit that it was made with",
                )
            mine = np.flatnonzero(numbers == number)
            rows = rejects["row"].take(pa.array(mine))
            tables.append(self.rows_of(plan[index]).take(rows))
            places.append(mine)
        return pa.concat_tables(tables).take(pa.array(np.argsort(np.concatenate(places), kind="stable")))


@dataclass(frozen=True, kw_only=True)
class _Tombstones:
    """What identifies rows that were taken down."""

    sample_ids: pa.Array
    images: Set[str]
    """SHA-256 (hex)."""


def _tombstones(images: Version) -> _Tombstones:
    """Read rejects shards from the last one on: a takedown appends its rejects as one shard."""
    ids, images_gone = [pa.array([], pa.int64())], set[str]()
    left = images.manifest.rejects_by_reason.get(TAKEDOWN, 0)
    folder = files.join(images.folder_uri, "rejects")
    for info in reversed(images.rejects if left else ()):
        rows = pa.array(np.flatnonzero(pc.equal(read_columns(folder, info, ["reason"])["reason"], TAKEDOWN)))
        if len(rows):
            gone = read_columns(folder, info, ["sample_id", "detail"]).take(rows)
            ids += gone["sample_id"].chunks
            details = gone["detail"].to_pylist()
            images_gone.update(text.removeprefix(IMAGE) for text in details if text and text.startswith(IMAGE))
            left -= len(rows)
        if not left:
            break
    return _Tombstones(sample_ids=pa.concat_arrays(ids), images=DigestSet(images_gone))


def _still_missing(
    rejects: pa.Table, again: Rows, refused: Rows, reasons: pa.Array, details: pa.Array
) -> pa.Table:  # fmt: skip
    """Return the rejects without those that came.

    Args:
        again: rows of `rejects` that were fetched.
        refused: indices into `again` of those that did not come, with their `reasons` and `details`.
    """
    rows = rejects.num_rows
    source = np.arange(rows)
    source[again[refused]] = rows + np.arange(len(refused))
    came = np.ones(len(again), bool)
    came[refused] = False
    kept = np.ones(rows, bool)
    kept[again[came]] = False
    columns = {name: rejects[name] for name in rejects.column_names}
    for name, new in (("reason", reasons), ("detail", details)):
        both = pa.chunked_array([*rejects[name].chunks, new.cast(pa.string())], pa.string())
        columns[name] = both.take(pa.array(source))
    return pa.table(columns, schema=REJECTS).filter(pa.array(kept))
