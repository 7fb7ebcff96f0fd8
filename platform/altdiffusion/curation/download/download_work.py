"""Download: links -> images, one unit at a time. Every row without an image becomes a reject with its reason."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from altdiffusion.curation.config import DownloadConfig, ScoreConfig
from altdiffusion.curation.download.crawler import Controls, Crawler, Pinned
from altdiffusion.curation.download.outage import Outage, controls_of, recorded_shards
from altdiffusion.curation.outcome import count, rejects_table
from altdiffusion.curation.tally import tally_images
from altdiffusion.curation.web.addresses import Resolver
from altdiffusion.execution.ranges import plan_ranges, read_range
from altdiffusion.execution.units import Unsettled
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Dataset, Lake, Version
from altdiffusion.storage.ledger import Ledger, Unit, UnitRecord, total


def plan_download(links: Version, rows_per_unit: int) -> list[Unit]:
    """Return the units of a links version, in input order."""
    return plan_ranges(links, rows_per_unit)


class DownloadWork:
    """Downloads a row range of links. `aesthetic_score` comes from the scorer, in the same pass.

    Args:
        blocklists: those of the sources; their links and domains must not be reached through a redirect either.
        ledger: this work's own, which names links that have come; None believes every failure (`outage`).
    """

    def __init__(
        self,
        *,
        lake: str,
        dataset: str,
        download: DownloadConfig,
        score: ScoreConfig | None = None,
        resolver: Resolver | None = None,
        blocklists: Sequence[Pinned] = (),
        ledger: Ledger | None = None,
    ) -> None:
        self.lake, self.dataset, self._ledger = lake, dataset, ledger
        self._crawler = Crawler(download, score or ScoreConfig(), resolver, blocklists)
        self._versions: dict[str, Version] = {}

    def setup(self) -> None:
        """Make the fetcher and load scorer and blocklist."""
        self._crawler.setup()

    def close(self) -> None:
        """End the decoders and close connections; the end of the process does the same."""
        self._crawler.close()

    def run(self, unit: Unit) -> UnitRecord:
        """Download, resize, score and write one unit."""
        links = read_range(self.lake, unit, self._versions)
        with (
            unsettled(unit, links.num_rows),
            self._crawler.crawl(links, controls=self._controls(), twice=True) as crawled,
        ):
            rows, reasons, details = crawled.refused()
            gone = links.take(pa.array(rows))
            rejects = rejects_table(
                unit.id,
                row=rows,
                reason=reasons,
                sample_id=gone["sample_id"],
                url=gone["url"],
                language=gone["language"],
                detail=details,
            )
            return write_unit(
                Lake(self.lake).dataset(self.dataset),
                unit,
                rows_in=links.num_rows,
                accepted=crawled.tables(),
                rejects=rejects,
            )

    def _controls(self) -> Controls | None:
        ledger = self._ledger
        folder = files.join(Lake(self.lake).dataset(self.dataset).folder_uri, "shards")
        return None if ledger is None else lambda: controls_of(folder, recorded_shards(ledger))


@contextlib.contextmanager
def unsettled(unit: Unit, rows: int) -> Iterator[None]:
    """Turn an outage into a unit that is not recorded."""
    try:
        yield
    except Outage as outage:
        tried = min(rows, sum(outage.reasons.values()) + outage.accepted)
        raise Unsettled(unit.id, tried, outage.accepted, outage.reasons) from None


def write_unit(
    dataset: Dataset, unit: Unit, *, rows_in: int, accepted: Iterable[pa.Table], rejects: pa.Table
) -> UnitRecord:
    """Write shard after shard, each forgotten before the next is made; return the unit's record."""
    shards, languages, tallies = [], [], []
    for table in accepted:
        shards.append(dataset.write_shard(table))
        languages.append(count(table["language"]))
        tallies.append(tally_images(table))
    return UnitRecord(
        unit_id=unit.id,
        index=unit.index,
        input_digest=str(unit.payload["input_digest"]),
        rows_in=rows_in,
        shards=tuple(shards),
        rejects=(dataset.write_rejects(rejects),) if rejects.num_rows else (),
        rejects_by_reason=count(rejects["reason"]),
        rows_by_language=total(languages),
        tally=total(tallies),
    )
