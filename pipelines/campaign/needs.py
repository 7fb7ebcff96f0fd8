"""What each job of a campaign needs: workers, hours, terabytes, by the estimates of its own dry run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from altdiffusion.curation.config.estimate import DownloadEstimateConfig
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.units import Resources
from altdiffusion.storage.files import is_local
from altdiffusion.training.estimate.cost import Cost, EstimateConfig, disk_bytes, fault_model
from altdiffusion.training.estimate.goodput import FaultModel, Simulated, simulate
from pipelines.campaign.order import PlannedJob
from pipelines.common import Workers
from pipelines.train import TrainJobConfig, cost_of


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one pool of a job needs."""

    job: PlannedJob
    part: str
    """Its work: `download`, or a stage of training."""
    count: int
    """Number of workers."""
    resources: Resources
    """What one worker reserves."""
    hours: float | None
    """Wall-clock time; None where the config does not state what it takes to estimate it."""
    missing: str = ""
    """The key that the config would have to give."""
    stored_tb: float = 0.0
    egress_tb: float = 0.0
    source: str = "assumed"
    """Where the figures come from."""
    figures: str = ""
    """The figures, in words."""
    download: DownloadEstimateConfig | None = None
    training: Training | None = None


@dataclass(frozen=True, kw_only=True)
class Training:
    """A run of a stage under failures."""

    config: TrainJobConfig
    cost: Cost
    model: FaultModel
    simulated: Simulated

    @property
    def rate(self) -> float:
        """Images per second and worker."""
        rate = self.config.estimate.images_per_s_per_worker
        assert rate is not None
        return rate

    @property
    def images(self) -> int:
        """Images that the run trains on, with repetitions."""
        train = self.config.train
        return (train.steps - train.first_step) * train.global_batch


def needs_of(jobs: Sequence[PlannedJob]) -> list[Need]:
    """Return what the jobs need, in their order."""
    return [need for job in jobs for need in _needs(job)]


def _needs(job: PlannedJob) -> Iterator[Need]:
    match job.kind:
        case "curate":
            yield from _curate(job)
        case "train":
            yield _train(job)
        case _:
            yield _work(job)


def _pool(job: PlannedJob, part: str, hours: float | None, missing: str, workers: Workers, **more: Any) -> Need:
    return Need(
        job=job,
        part=part,
        count=workers.max,
        resources=workers.resources,
        hours=hours,
        missing=missing if hours is None else "",
        **more,
    )


def _curate(job: PlannedJob) -> Iterator[Need]:
    config = job.config
    given: DownloadEstimateConfig = config.estimate
    select, download = config.select_workers, config.download_workers
    yield _pool(
        job,
        "select",
        given.select_hours(select.max) if given.rows else None,
        "estimate.rows",
        select,
        source=given.source,
        figures=f"{given.rows or 0:,} rows, {given.rows_per_s_per_worker:,g} per second and worker",
    )
    yield _pool(
        job,
        "download",
        given.hours(download.max) if given.links else None,
        "estimate.links",
        download,
        stored_tb=given.stored_tb,
        source=given.source,
        figures=f"{given.links or 0:,} links, {given.links_per_s_per_worker:g} per second and worker, "
        f"{given.success:.0%} alive, {given.fetched_kb:g} KB fetched and {given.stored_kb:g} KB stored per image",
        download=given if given.links else None,
    )


def _work(job: PlannedJob) -> Need:
    given, workers = job.config.estimate, job.config.workers
    missing = "estimate.rows" if given.rows is None else "estimate.rows_per_s_per_worker"
    return _pool(
        job,
        job.kind,
        given.hours(workers.max),
        missing,
        workers,
        stored_tb=given.stored_tb,
        egress_tb=given.stored_tb if job.kind == "generate" else 0.0,
        source=given.source,
        figures=f"{given.rows or 0:,} rows, {given.rows_per_s_per_worker or 0:g} per second and worker, "
        f"{given.stored_kb:g} KB stored per row",
    )


def _train(job: PlannedJob) -> Need:
    config: TrainJobConfig = job.config
    train, given = config.train, config.estimate
    cost, shapes = cost_of(train, config.lake, is_local(config.lake))
    rate = given.images_per_s_per_worker
    training = None
    if rate is not None:
        model = fault_model(train, given, cost, step_s=train.global_batch / (rate * train.workers.count))
        training = Training(config=config, cost=cost, model=model, simulated=_simulated(model, job))
    workers = train.workers
    return Need(
        job=job,
        part=train.stage,
        count=workers.count,
        resources=Resources(num_cpus=workers.cpus, num_gpus=workers.gpus, custom=workers.custom),
        hours=training.simulated.total_s / 3600 if training is not None else None,
        missing="" if training is not None else "estimate.images_per_s_per_worker",
        stored_tb=disk_bytes(train, cost) / 1e12,
        egress_tb=cost.export / 1e12,
        source=given.source,
        figures=_figures(given, rate) + "".join(f"; {one}" for one in shapes.assumed),
        training=training,
    )


def _figures(given: EstimateConfig, rate: float | None) -> str:
    return (
        f"{rate or 0:g} per second and worker, {given.failures_per_worker_day:g} failures per worker and day, "
        f"{given.restart_s:g} s to start again ({given.detect_s:g} to notice, {given.reschedule_s:g} for workers, "
        f"{given.load_s:g} to load), checkpoints copied at {given.copy_gb_per_s:g} GB/s and written at "
        f"{given.checkpoint_gb_per_s:g} GB/s per worker"
    )


def _simulated(model: FaultModel, job: PlannedJob) -> Simulated:
    try:
        return simulate(model)
    except AltDiffusionError as error:
        raise AltDiffusionError(f"config {job.file}: {error.what}", error.problem, error.remedy) from None


def with_workers(need: Need, count: int, network_gbit_s: float, gpus_per_node: float) -> tuple[FaultModel, Simulated]:
    """Return the same run on another number of workers, and what becomes of it.

    An image takes a worker as long as at the config's count, less the exchange of gradients there. A worker computes
    ceil(batch / count) of them. Gradients (float32) go around a ring of nodes, 2 (n - 1) / n times their bytes over
    each node's network (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", JPDC 69, 2009), and nothing is
    overlapped; within a node they take no time.
    """
    training = need.training
    assert training is not None
    train = training.config.train

    def exchange_s(workers: int) -> float:
        nodes = -(-workers // max(1, int(gpus_per_node)))
        if nodes < 2 or not network_gbit_s:
            return 0.0
        return 2 * (nodes - 1) / nodes * training.cost.trained * 4 * 8 / (network_gbit_s * 1e9)

    own = train.workers.count
    step_s = train.global_batch / (training.rate * own)
    image_s = max(0.0, step_s - exchange_s(own)) * own / train.global_batch
    there = -(-train.global_batch // count) * image_s + exchange_s(count)
    model = fault_model(train, training.config.estimate, training.cost, step_s=there, workers=count)
    return model, simulate(model)
