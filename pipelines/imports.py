"""Import: files of one's own become a dataset: images with captions, or links where only addresses are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

from altdiffusion.config import operational
from altdiffusion.constraints import DATASET_NAME, Checked, Invalid, exactly_one
from altdiffusion.curation.config import LanguageConfig, OwnConfig, SelectConfig, SourceConfig
from altdiffusion.curation.config.select import every_row
from altdiffusion.curation.hub_data import check_pinned
from altdiffusion.curation.links.sources import describe_sources, scan_source
from altdiffusion.curation.links.steps import links_steps
from altdiffusion.curation.own.readiness import check_ready
from altdiffusion.curation.own.scan import as_hub_set, scan_own
from altdiffusion.curation.own.steps import import_step
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.pipeline_step import PipelineStep
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from pipelines.common import JobConfig, Plan, Survey, Workers, cores_of, device_conflicts, look_at
from pipelines.estimates import WorkEstimateConfig, work_line


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnLinksConfig(Checked):
    """A table of links of one's own, and which of its rows stay."""

    source: SourceConfig
    select: SelectConfig = every_row()
    """Null thresholds keep every row; set those whose columns the table has."""
    language: LanguageConfig = LanguageConfig()


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig(JobConfig):
    """`jobs/import.py`."""

    name: str = operational("import")
    """Name of the run in MLflow."""
    dataset: Annotated[str, DATASET_NAME] = "images"
    """Name of the dataset that the job makes."""
    images: OwnConfig | None = None
    """The source, where it holds the images."""
    links: OwnLinksConfig | None = None
    """The source, where it holds addresses of images. The job also makes `<dataset>-candidates`."""
    workers: Workers = operational(factory=Workers)
    estimate: WorkEstimateConfig = operational(factory=WorkEstimateConfig)
    """What `--dry-run` assumes of the work."""

    def conflicts(self) -> Iterator[Invalid]:
        yield from exactly_one(self, "images", "links", "give `images: {uri: FOLDER}`, or `links` for addresses alone")
        yield from device_conflicts(self, self.workers, {})

    @property
    def run_name(self) -> str:
        return self.name


def pipeline_steps(config: ImportConfig) -> tuple[PipelineStep, ...]:
    """Return the one step that makes images, or the two that make links."""
    pool, resources = config.workers.pool, config.workers.resources
    if config.images is not None:
        store = config.images.store
        decoders = store.decoder_count(cores_of(config.execution, config.workers))
        images = replace(config.images, store=replace(store, decoders=decoders))
        return (import_step(config.lake, config.dataset, images, pool, resources),)
    assert config.links is not None
    return links_steps(
        config.lake,
        [(config.links.source, config.links.select)],
        config.links.language,
        candidates=f"{config.dataset}-candidates",
        links=config.dataset,
        pool=pool,
        resources=resources,
    )


def survey(config: ImportConfig, remote: bool = False) -> Survey:
    """Return what the source holds, and what would stop the job."""
    uri = config.images.uri if config.images is not None else config.links.source.uri if config.links else ""
    problems: list[AltDiffusionError] = []
    lines: list[str] = []
    try:
        if config.images is not None:
            as_hub_set(config.images)
        check_pinned(uri)
        if not remote and not files.is_local(uri):
            lines = ["source  not looked at: it is not on this machine (--remote looks)"]
        elif config.images is not None:
            lines = scan_own(config.images).lines()
        elif config.links is not None:
            lines = describe_sources([scan_source(config.links.source, config.links.select)])
    except AltDiffusionError as error:
        problems.append(error)

    def ready(lake: Lake) -> list[str]:
        if config.images is not None:
            check_ready(lake, config.dataset, "images", config.images)
        else:
            check_ready(lake, config.dataset, "links")
        return []

    found = look_at(config.lake, remote, ready, more=work_line(config.estimate, config.workers.max))
    return Survey(lines=[*lines, *found.lines], problems=[*problems, *found.problems])


def plan(config: ImportConfig) -> Plan:
    """Return what the job will do."""
    facts = {}
    if config.images is not None:
        own = config.images
        stated = "" if own.language_column is None else f" (column {own.language_column})"
        identified = "identified" if own.identifies else f"as stated{stated}"
        facts = {
            "source": own.uri,
            "language": own.language or identified,
            "images": f"{own.store.image_size} px, {own.store.encode_format}",
        }
    elif config.links is not None:
        facts = {"source": f"{config.links.source.uri} ({config.links.source.preset})"}
    return Plan(
        title=f"import dataset {config.dataset}",
        steps=tuple(pipeline_step.describe() for pipeline_step in pipeline_steps(config)),
        facts=facts,
    )
