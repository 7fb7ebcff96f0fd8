"""The pipeline steps from sources of links to distinct links: `jobs.curate` and `jobs.import` share them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from altdiffusion.config import semantic
from altdiffusion.curation.config import LanguageConfig, SelectConfig, SourceConfig
from altdiffusion.curation.links.dedup import DedupWork
from altdiffusion.curation.links.select_work import SelectSourcesWork, SelectWork
from altdiffusion.curation.links.sources import SourceScan, plan_sources, scan_source
from altdiffusion.curation.web.blocklist import blocklist_refs
from altdiffusion.execution.pipeline_step import Output, PipelineStep
from altdiffusion.execution.ranges import plan_buckets
from altdiffusion.execution.units import Pool, Resources


def links_steps(
    lake: str,
    sources: Sequence[tuple[SourceConfig, SelectConfig]],
    language: LanguageConfig,
    *,
    candidates: str,
    links: str,
    pool: Pool | None = None,
    resources: Resources | None = None,
) -> tuple[PipelineStep, PipelineStep]:
    """Return `select`, which makes candidates of the rows of all sources, and `deduplicate`, which makes links of them.

    Args:
        candidates: name of the dataset of selected rows.
        links: name of the dataset of distinct links.
    """

    @functools.cache  # the footers are read once for parents and units
    def scans() -> tuple[SourceScan, ...]:
        return tuple(scan_source(source, select) for source, select in sources)

    works = {
        source.name: SelectWork(lake=lake, dataset=candidates, source=source, select=select, language=language)
        for source, select in sources
    }
    buckets = sources[0][1].buckets
    described = [{"source": semantic(source), "select": semantic(select)} for source, select in sources]
    settings = {"sources": described, "language": semantic(language)}
    return (
        PipelineStep(
            name="select",
            outputs=(Output(dataset=candidates, kind="links", settings=settings),),
            noun="rows",
            parents=lambda _: [*(scan.ref for scan in scans()), *blocklist_refs([source for source, _ in sources])],
            units=lambda _: plan_sources(scans()),
            work=lambda _: SelectSourcesWork(works),
            when_empty="loosen the thresholds that rejected most, or check the source's columns",
            pool=pool or Pool(),
            resources=resources or Resources(),
        ),
        PipelineStep(
            name="deduplicate",
            outputs=(Output(dataset=links, kind="links", settings={"buckets": buckets}),),
            noun="rows",
            parents=lambda at: [at.version(candidates).ref],
            units=lambda at: plan_buckets(at.version(candidates), buckets),
            work=lambda _: DedupWork(lake=lake, dataset=links),
            pool=pool or Pool(),
            resources=resources or Resources(),
        ),
    )
