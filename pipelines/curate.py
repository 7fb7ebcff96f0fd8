"""Curation: source -> candidates -> links [-> balanced] -> images, and the steps that follow on downloaded images.

    select -> deduplicate [-> balance] -> download [-> retry]* [-> fingerprint -> compare -> distinct]

`images` gets a new version at each step from download on; only the last one becomes the head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from altdiffusion.config import fingerprint, operational, semantic
from altdiffusion.constraints import DATASET_NAME, Invalid
from altdiffusion.curation.config import (
    BalanceConfig,
    DistinctConfig,
    DownloadConfig,
    DownloadEstimateConfig,
    LanguageConfig,
    ReportConfig,
    RetryConfig,
    ScoreConfig,
    SelectConfig,
    SourceConfig,
)
from altdiffusion.curation.config.estimate import download_line
from altdiffusion.curation.download import retry
from altdiffusion.curation.download.download_work import DownloadWork, plan_download
from altdiffusion.curation.hub_data import check_pinned
from altdiffusion.curation.images import duplicates
from altdiffusion.curation.links.balance_work import BalanceWork, plan_balance
from altdiffusion.curation.links.sources import describe_sources, scan_source
from altdiffusion.curation.links.steps import links_steps
from altdiffusion.curation.parts import find_partitioned
from altdiffusion.curation.web.blocklist import blocklist_refs, load_blocklist, source_blocklist
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.pipeline_step import PipelineStep, published
from altdiffusion.execution.ranges import plan_buckets
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.removal import after_takedowns
from pipelines.common import JobConfig, Plan, Survey, Workers, cores_of, device_conflicts, make_pipeline_step
from pipelines.languages import look_at_languages
from pipelines.score import model_looks


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectedSource:
    """A source and the filters on its rows."""

    source: SourceConfig
    select: SelectConfig = SelectConfig()


@dataclass(frozen=True, kw_only=True, slots=True)
class CurateConfig(JobConfig):
    """`jobs/curate.py`."""

    name: str = operational("curate")
    """Name of the run in MLflow."""
    sources: tuple[SelectedSource, ...]
    language: LanguageConfig = LanguageConfig()
    balance: BalanceConfig | None = None
    """The share of each language that is kept; null keeps every link."""
    download: DownloadConfig = DownloadConfig()
    score: ScoreConfig = ScoreConfig()
    retry: RetryConfig | None = None
    """Later passes over links that failed for a temporary reason; null makes none."""
    distinct: DistinctConfig | None = None
    """Which downloaded images count as the same; null keeps all."""
    candidates: Annotated[str, DATASET_NAME] = "candidates"
    """Name of the dataset of selected rows, before deduplication."""
    links: Annotated[str, DATASET_NAME] = "links"
    """Name of the dataset of distinct links."""
    balanced: Annotated[str, DATASET_NAME] = "balanced"
    """Name of the dataset of links that `balance` keeps."""
    images: Annotated[str, DATASET_NAME] = "images"
    """Name of the dataset of downloaded images; `distinct` also makes `<images>-keys` and `<images>-drops`."""
    select_workers: Workers = operational(factory=Workers)
    download_workers: Workers = operational(factory=Workers)
    report: ReportConfig = operational(factory=ReportConfig)
    """Contents of report.html."""
    estimate: DownloadEstimateConfig = operational(factory=DownloadEstimateConfig)
    """What `--dry-run` assumes of the download."""

    def conflicts(self) -> Iterator[Invalid]:
        names = [entry.source.name for entry in self.sources]
        if not names or len(set(names)) != len(names):
            yield Invalid("sources", "must be at least one, each with its own name", "name each once")
        if len({entry.select.buckets for entry in self.sources}) != 1:
            yield Invalid("sources", "differ in select.buckets", "give all of them the same number")
        yield from device_conflicts(self, self.select_workers, {}, "select_workers")
        yield from device_conflicts(
            self, self.download_workers, {"score.device": self.score.device}, "download_workers"
        )

    @property
    def run_name(self) -> str:
        return self.name


_LOOK = (
    "check connect_to, allow_private and ca_file of the config's download, DNS, and this machine's route to the web "
    "(no proxy is used), then run the job again, which tries these rows again; if the hosts are known to be gone for "
    "good, download.believe_failures=true records the failures"
)


def pipeline_steps(config: CurateConfig) -> tuple[PipelineStep, ...]:
    """Return all pipeline steps, in order."""
    to_links = (*_links(config), *_balance(config))
    to_images = [_download(config)]
    for number in range(1, (config.retry.passes if config.retry else 0) + 1):
        to_images.append(_retry(config, number, to_images[0], to_images[-1]))
    to_images += _distinct(config, to_images[-1])
    last = to_images[-1]
    return (
        *to_links,
        *(replace(step, is_head=step is last or step.output.dataset != last.output.dataset) for step in to_images),
    )


def _links(config: CurateConfig) -> tuple[PipelineStep, PipelineStep]:
    return links_steps(
        config.lake,
        [(entry.source, entry.select) for entry in config.sources],
        config.language,
        candidates=config.candidates,
        links=config.links,
        pool=config.select_workers.pool,
        resources=config.select_workers.resources,
    )


def _balance(config: CurateConfig) -> tuple[PipelineStep, ...]:
    balance = config.balance
    if balance is None:
        return ()
    return (
        make_pipeline_step(
            name="balance",
            output=config.balanced,
            settings={"balance": semantic(balance)},
            workers=config.select_workers,
            noun="rows",
            kind="links",
            parents=_head(config.links),
            units=lambda lake: plan_balance(lake.version(config.links), balance)[0],
            work=lambda _: BalanceWork(lake=config.lake, dataset=config.balanced, balance=balance),
            when_empty="raise rows_per_language, or lower similarity_quantile",
        ),
    )


def _download(config: CurateConfig) -> PipelineStep:
    links = config.links if config.balance is None else config.balanced
    digest = config.download.image_blocklist_sha256
    sources = [entry.source for entry in config.sources]
    listed = [*([Ref("blocklist", "images", digest)] if digest is not None else []), *blocklist_refs(sources)]
    return make_pipeline_step(
        name="download",
        output=config.images,
        settings=_downloading(config),
        workers=config.download_workers,
        noun="images",
        kind="images",
        parents=lambda lake: [lake.version(links).ref, *listed],
        units=lambda lake: plan_download(lake.version(links), config.download.rows_per_unit),
        work=lambda lake: DownloadWork(
            lake=config.lake,
            dataset=config.images,
            download=_for_workers(config),
            score=config.score,
            blocklists=_blocklists(config),
            ledger=lake.dataset(config.images).ledger(fingerprint(_downloading(config))),
        ),
        when_empty="check that the images' hosts answer; the reject reasons count what went wrong",
        reads_the_web=True,
        when_unsettled=_LOOK,
    )


def _for_workers(config: CurateConfig) -> DownloadConfig:
    """Return the settings of a worker: as many decoders as `auto` means for it."""
    cores = cores_of(config.execution, config.download_workers)
    return replace(config.download, decoders=config.download.decoder_count(cores))


def _amount(config: CurateConfig) -> str:
    """Return what the workers of the download amount to: downloads at a time, cores and network."""
    workers = config.download_workers.max if config.execution.backend == "ray" else 1
    cores = cores_of(config.execution, config.download_workers)
    decoders, threads = _for_workers(config).decoder_count(cores), config.download.threads
    given = config.estimate
    crew = f"{workers:,} worker{'s' * (workers > 1)} x {threads:,}"
    return (
        f"{workers * threads:,} at a time ({crew}), {workers * cores:,g} cores with {workers * decoders:,} decoders; "
        f"{given.gigabits_per_s(workers):,.3g} Gbit/s at {given.links_per_s_per_worker:g} links/s per worker, "
        f"{given.success:.0%} of links alive and {given.fetched_kb:g} KB per image (estimate.*)"
    )


def _downloading(config: CurateConfig) -> dict[str, Any]:
    """Return the settings that decide which images are downloaded.

    The sources' blocklists are among them, since no redirect may lead to what they list.
    """
    listed = [sha256 for _, sha256 in _blocklists(config)]
    return {
        "download": semantic(config.download),
        "score": semantic(config.score),
        **({"blocklists": listed} if listed else {}),
    }


def _blocklists(config: CurateConfig) -> list[tuple[str, str]]:
    """Return URI and SHA-256 of the sources' blocklists, each file once."""
    found = {
        entry.source.blocklist_sha256: entry.source.blocklist
        for entry in config.sources
        if entry.source.blocklist is not None and entry.source.blocklist_sha256 is not None
    }
    return [(uri, sha256) for sha256, uri in found.items() if uri is not None and sha256 is not None]


def _retry(config: CurateConfig, number: int, first: PipelineStep, before: PipelineStep) -> PipelineStep:
    """Return pass `number` over the rows that the pipeline step `before` rejected; `first` is the download."""
    chosen = config.retry
    assert chosen is not None
    made = _made(before)
    return make_pipeline_step(
        name="retry",
        output=config.images,
        settings={**_downloading(config), "retry": semantic(chosen), "pass": number},
        workers=config.download_workers,
        noun="images",
        kind="images",
        parents=lambda lake: [made(lake).ref],
        units=lambda lake: retry.plan_retry(lake.version(first.parents(lake)[0]), made(lake), config.download),
        work=lambda _: retry.RetryWork(
            lake=config.lake,
            dataset=config.images,
            download=_for_workers(config),
            retry=chosen,
            score=config.score,
            blocklists=_blocklists(config),
            believes=False,
        ),
        when_unsettled=_LOOK,
        carried=lambda lake: [retry.carried(made(lake))],
    )


def _distinct(config: CurateConfig, images: PipelineStep) -> tuple[PipelineStep, ...]:
    """Return the steps that drop duplicates among the images that the step `images` makes."""
    chosen = config.distinct
    if chosen is None:
        return ()
    made = _made(images)
    keys, drops = f"{config.images}-keys", f"{config.images}-drops"
    settings = {"distinct": semantic(chosen)}
    return (
        make_pipeline_step(
            name="fingerprint",
            output=keys,
            settings=settings,
            workers=config.select_workers,
            noun="images",
            kind="keys",
            parents=lambda lake: [made(lake).ref],
            units=lambda lake: duplicates.plan_fingerprint(made(lake), chosen),
            work=lambda _: duplicates.FingerprintWork(lake=config.lake, dataset=keys, config=chosen),
        ),
        make_pipeline_step(
            name="compare",
            output=drops,
            settings=settings,
            workers=config.select_workers,
            noun="duplicates",
            kind="drops",
            parents=_head(keys),
            units=lambda lake: plan_buckets(lake.version(keys), chosen.buckets),
            work=lambda _: duplicates.CompareWork(lake=config.lake, dataset=drops, config=chosen),
            may_be_empty=True,
        ),
        make_pipeline_step(
            name="distinct",
            output=config.images,
            settings=settings,
            workers=config.select_workers,
            noun="images",
            kind="images",
            parents=lambda lake: [made(lake).ref, lake.version(drops).ref],
            units=lambda lake: duplicates.plan_distinct(made(lake), lake.version(drops)),
            work=lambda _: duplicates.DistinctWork(lake=config.lake, dataset=config.images),
            carried=lambda lake: duplicates.carried_rejects(made(lake)),
        ),
    )


def _head(name: str) -> Callable[[Lake], Sequence[Ref]]:
    return lambda lake: [lake.version(name).ref]


def _made(pipeline_step: PipelineStep) -> Callable[[Lake], Version]:
    """Return a lookup of the version that an earlier pipeline step made, which need not be the dataset's head.

    If rows were taken down from that version, the lookup returns the version without them, so that nothing made from it
    brings them back. Its result is kept.
    """

    @functools.cache
    def version(uri: str) -> Version:
        made = published(Lake(uri), pipeline_step)
        if made is None:
            raise AltDiffusionError(
                pipeline_step.target,
                f"has no version of pipeline step {pipeline_step.name}",
                "run the whole job",
            )
        return after_takedowns(Lake(uri).dataset(pipeline_step.output.dataset), made[0])

    return lambda lake: version(lake.uri)


def plan(config: CurateConfig) -> Plan:
    """Return what the job will do."""
    names = ", ".join(f"{entry.source.name} ({entry.source.preset})" for entry in config.sources)
    return Plan(
        title=f"curate {names}",
        steps=tuple(pipeline_step.describe() for pipeline_step in pipeline_steps(config)),
        facts={
            "languages": " ".join(config.language.languages),
            "images": f"{config.download.image_size} px, {config.download.encode_format}",
            "downloads": _amount(config),
        },
    )


def survey(config: CurateConfig, remote: bool = False) -> Survey:
    """Return what the sources hold according to their footers, and which of sources, lists and models are missing."""

    def here(*uris: str | None) -> bool:
        return remote or all(uri is None or files.is_local(uri) for uri in uris)

    lines: list[str] = []
    problems: list[AltDiffusionError] = []

    def look(at: Callable[[], list[str]]) -> None:
        try:
            lines.extend(at())
        except AltDiffusionError as error:
            problems.append(error)

    def source(entry: SelectedSource) -> list[str]:
        if here(entry.source.uri, entry.source.blocklist):
            return describe_sources([scan_source(entry.source, entry.select)])
        if here(entry.source.blocklist):
            source_blocklist(entry.source)
        check_pinned(entry.source.uri)
        what = f"source {entry.source.name}"
        if not here(entry.source.uri):
            return [f"{what}: not looked at: it is not on this machine (--remote looks)"]
        find_partitioned(entry.source.uri, what)
        return [f"{what}: not read: its blocklist is not on this machine (--remote looks)"]

    def image_blocklist() -> list[str]:
        listed, digest = config.download.image_blocklist, config.download.image_blocklist_sha256
        if listed is not None and digest is not None and here(listed):
            load_blocklist(listed, digest)
        return []

    for entry in config.sources:
        look(lambda entry=entry: source(entry))  # type: ignore[misc]
    look(lambda: look_at_languages(config.language, remote))
    look(image_blocklist)
    for model in model_looks(config.score, remote):
        look(lambda model=model: model(Lake(config.lake)))  # type: ignore[misc]
    lines += download_line(config.estimate, config.download_workers.max, config.download_workers.cpus)
    return Survey(lines=lines, problems=problems)
