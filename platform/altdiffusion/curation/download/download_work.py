"""Download: links -> images, one unit at a time. Every row without an image becomes a reject with its reason."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from altdiffusion.curation.config import DownloadConfig, ScoreConfig
from altdiffusion.curation.download.crawler import Controls, Crawler, Pinned
from altdiffusion.curation.download.outage import Outage, controls_of, recorded_shards
from altdiffusion.curation.rejects import rejected
from altdiffusion.curation.web.resolvers import Resolver
from altdiffusion.execution.range_work import RangeWork, finish_unit
from altdiffusion.execution.ranges import plan_ranges
from altdiffusion.execution.units import Unit, Unsettled
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Version
from altdiffusion.storage.ledger import Ledger, UnitRecord
from altdiffusion.tally import tally_images


def plan_download(links: Version, rows_per_unit: int) -> list[Unit]:
    """Return the units of a links version, in input order."""
    return plan_ranges(links, rows_per_unit)


class DownloadWork(RangeWork):
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
        super().__init__(lake=lake, dataset=dataset)
        self._ledger = ledger
        self._crawler = Crawler(download, score or ScoreConfig(), resolver, blocklists)

    def setup(self) -> None:
        """Make the fetcher and load scorer and blocklist."""
        self._crawler.setup()

    def close(self) -> None:
        """End the decoders and close connections; the end of the process does the same."""
        self._crawler.close()

    def run(self, unit: Unit) -> UnitRecord:
        """Download, resize, score and write one unit."""
        links = self.rows_of(unit)
        with (
            unsettled(unit, links.num_rows),
            self._crawler.crawl(links, controls=self._controls(), twice=True) as crawled,
        ):
            rows, reasons, details = crawled.refused()
            return finish_unit(
                self.output,
                unit,
                rows_in=links.num_rows,
                accepted=crawled.tables(),
                rejects=[rejected(unit.id, links, rows, reasons, detail=details)],
                tally=tally_images,
            )

    def _controls(self) -> Controls | None:
        ledger = self._ledger
        folder = files.join(self.output.folder_uri, "shards")
        return None if ledger is None else lambda: controls_of(folder, recorded_shards(ledger))


@contextlib.contextmanager
def unsettled(unit: Unit, rows: int) -> Iterator[None]:
    """Turn an outage into a unit that is not recorded."""
    try:
        yield
    except Outage as outage:
        tried = min(rows, sum(outage.reasons.values()) + outage.accepted)
        raise Unsettled(unit.id, tried, outage.accepted, outage.reasons) from None
