"""Curation: source -> select -> candidates -> deduplicate -> links -> download (and score) -> images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from altdiffusion.config import operational, semantic
from altdiffusion.curation.config import DownloadConfig, LanguageConfig, ScoreConfig, SelectConfig, SourceConfig
from altdiffusion.curation.dedup import DedupWork, plan_dedup
from altdiffusion.curation.download import DownloadWork, plan_download
from altdiffusion.curation.select import SelectWork
from altdiffusion.curation.source import scan_source
from altdiffusion.curation.sources import SelectSourcesWork, plan_sources
from altdiffusion.execution.boundary import Boundary
from altdiffusion.refs import Ref
from altdiffusion.storage.dataset import Lake
from pipelines.common import JobConfig, Plan, Workers, make_boundary


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectedSource:
    """A source and what is taken from it."""

    source: SourceConfig
    select: SelectConfig = SelectConfig()


@dataclass(frozen=True, kw_only=True, slots=True)
class CurateConfig(JobConfig):
    """`jobs/curate.py`."""

    name: str = operational("curate")
    """Name of the run in MLflow."""
    sources: tuple[SelectedSource, ...]
    language: LanguageConfig = LanguageConfig()
    download: DownloadConfig = DownloadConfig()
    score: ScoreConfig = ScoreConfig()
    candidates: str = "candidates"
    """Name of the dataset of selected rows, before deduplication."""
    links: str = "links"
    """Name of the dataset of distinct links."""
    images: str = "images"
    """Name of the dataset of downloaded pictures."""
    select_workers: Workers = operational(factory=Workers)
    download_workers: Workers = operational(factory=Workers)

    def __post_init__(self) -> None:
        names = [entry.source.name for entry in self.sources]
        if not names or len(set(names)) != len(names):
            raise ValueError("sources: must be at least one, each with its own name; name each once")
        if len({entry.select.buckets for entry in self.sources}) != 1:
            raise ValueError("sources: differ in select.buckets; give all of them the same number")

    @property
    def run_name(self) -> str:
        return self.name


def boundaries(config: CurateConfig) -> tuple[Boundary, ...]:
    """The three boundaries, in order."""
    lake = config.lake
    works = {
        entry.source.name: SelectWork(
            lake=lake, dataset=config.candidates, source=entry.source, select=entry.select, language=config.language
        )
        for entry in config.sources
    }

    def sources(_: Lake) -> Sequence[Ref]:
        return [scan_source(entry.source).ref for entry in config.sources]

    def head(name: str) -> Any:
        return lambda lake: [lake.version(name).ref]

    buckets = config.sources[0].select.buckets
    return (
        make_boundary(
            name="select",
            output=config.candidates,
            settings={
                "sources": [semantic(entry) for entry in config.sources],
                "language": semantic(config.language),
            },
            workers=config.select_workers,
            noun="rows",
            kind="links",
            parents=sources,
            units=lambda _: plan_sources([scan_source(entry.source) for entry in config.sources]),
            work=lambda _: SelectSourcesWork(works),
            when_empty="loosen the thresholds that rejected most, or check the source's columns",
        ),
        make_boundary(
            name="deduplicate",
            output=config.links,
            settings={"buckets": buckets},
            workers=config.select_workers,
            noun="rows",
            kind="links",
            parents=head(config.candidates),
            units=lambda lake: plan_dedup(lake.version(config.candidates), buckets),
            work=lambda _: DedupWork(lake=lake, dataset=config.links),
        ),
        make_boundary(
            name="download",
            output=config.images,
            settings={"download": semantic(config.download), "score": semantic(config.score)},
            workers=config.download_workers,
            noun="images",
            kind="images",
            parents=head(config.links),
            units=lambda lake: plan_download(lake.version(config.links), config.download.rows_per_unit),
            work=lambda _: DownloadWork(lake=lake, dataset=config.images, download=config.download, score=config.score),
            when_empty="check that the pictures' hosts answer; the reasons count what went wrong",
        ),
    )


def plan(config: CurateConfig) -> Plan:
    """What the job will do."""
    names = ", ".join(f"{entry.source.name} ({entry.source.preset})" for entry in config.sources)
    return Plan(
        title=f"curate {names}",
        steps=tuple(boundary.describe() for boundary in boundaries(config)),
        facts={
            "languages": " ".join(config.language.languages),
            "pictures": f"{config.download.image_size} px, {config.download.encode_format}",
        },
    )
