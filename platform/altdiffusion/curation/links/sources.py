"""Several sources in one run, each with its own thresholds (similarity scales differ between LAION's sets)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from altdiffusion.curation.links.select_work import SelectWork
from altdiffusion.curation.links.source_parts import SourceScan, describe_source, plan_select
from altdiffusion.storage.ledger import Unit, UnitRecord


def plan_sources(scans: Sequence[SourceScan]) -> list[Unit]:
    """The units of all sources, one source after the other: the order in which a duplicate's survivor is chosen."""
    units: list[Unit] = []
    for scan in scans:
        units += plan_select(scan, first=len(units))
    return units


def describe_sources(scans: Sequence[SourceScan]) -> list[str]:
    """What was found in each source, a line each."""
    return [f"source {scan.config.name}: {describe_source(scan)}" for scan in scans]


class SelectSourcesWork:
    """Hands each unit to the `SelectWork` of its source."""

    def __init__(self, works: Mapping[str, SelectWork]) -> None:
        self.works = dict(works)

    def setup(self) -> None:
        """Loads blocklists, and the language model once."""
        for work in self.works.values():
            work.setup()

    def run(self, unit: Unit) -> UnitRecord:
        """One row range of one source."""
        return self.works[str(unit.payload["source"])].run(unit)
