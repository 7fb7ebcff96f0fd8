"""Pipeline steps: each reads durable datasets and makes one. Run again, it does only what is not recorded yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.progress import Progress
from altdiffusion.execution.runner import run_units
from altdiffusion.execution.units import Pool, Resources, Unit, UnitWork, Unsettled
from altdiffusion.records import Kind
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Dataset, Lake, Version, check_name
from altdiffusion.storage.ledger import Ledger, UnitRecord
from altdiffusion.storage.removal import after_takedowns


@dataclass(frozen=True, kw_only=True)
class PipelineStep:
    """One pipeline step.

    `parents`, `units` and `work` read the lake, so they are called when it runs, not when it is planned.
    """

    name: str
    """The verb: select, deduplicate, download, encode, generate."""
    output: str
    """Name of the dataset it makes."""
    kind: Kind
    settings: Mapping[str, Any]
    """Everything that decides the result besides the parents; the manifest stores it."""
    fingerprint: str
    """Digest of `settings`; it names the ledger."""
    noun: str
    """What the progress line counts, in the plural."""
    parents: Callable[[Lake], Sequence[Ref]]
    units: Callable[[Lake], Sequence[Unit]]
    work: Callable[[Lake], UnitWork]
    pool: Pool = field(default_factory=Pool)
    resources: Resources = field(default_factory=Resources)
    carried: Callable[[Lake], Sequence[UnitRecord]] = lambda _: ()
    """Records that a version keeps unchanged from the previous version of the same dataset."""
    is_head: bool = True
    """Whether the version becomes what the dataset's bare name means; false if a later pipeline step replaces it."""
    may_be_empty: bool = False
    """Whether a version without a row is a result (a list of what to drop), not a mistake."""
    when_empty: str = "loosen the filters, or check the input"
    """Remedy to print when not one row is accepted."""
    reads_the_web: bool = False
    """Whether the same units may give other rows another time. If so, a start that accepts no row leaves no record, and
    the next one tries again."""
    when_unsettled: str = "run it again"
    """Remedy to print when units stay `Unsettled`."""

    def __post_init__(self) -> None:
        check_name(self.output)  # when it is planned, not hours later when the previous pipeline step has ended

    def describe(self) -> str:
        """Return one line for the plan."""
        pool, need = self.pool, self.resources
        gpus = f" + {need.num_gpus:g} GPU" if need.num_gpus else ""
        workers = f"{pool.min_size}-{pool.max_size} workers of {need.num_cpus:g} CPU{gpus}"
        return f"{self.name} -> dataset {self.output} ({self.kind}), {workers}"


def published(lake: Lake, pipeline_step: PipelineStep) -> Version | None:
    """Return the version that was already made from the present parents, if all its files exist."""
    dataset = lake.dataset(pipeline_step.output)
    parents = tuple(str(parent) for parent in pipeline_step.parents(lake))
    for digest in dataset.digests():
        version = dataset.open(digest)
        manifest = version.manifest
        if (manifest.parents, manifest.fingerprint) == (parents, pipeline_step.fingerprint) and not _missing(
            dataset, (*version.shards, *version.rejects)
        ):
            return version
    return None


def run_pipeline_step(
    lake: Lake, pipeline_step: PipelineStep, *, backend: Literal["ray", "inline"], progress: Progress | None = None
) -> Version:
    """Run the units that are not in the ledger and publish the version.

    Raises:
        AltDiffusionError: an input is unusable, or not one row was accepted or too many units stayed unsettled (then
            nothing is published).
    """
    done = published(lake, pipeline_step)
    dataset = lake.dataset(pipeline_step.output)
    if done is not None:
        return _as_head(dataset, done) if pipeline_step.is_head else done
    parents = pipeline_step.parents(lake)
    units = pipeline_step.units(lake)
    ledger = dataset.ledger(pipeline_step.fingerprint)
    _forget_lost(dataset, ledger, units)
    try:
        records = run_units(
            pipeline_step.work(lake),
            units,
            ledger,
            backend=backend,
            pool=pipeline_step.pool,
            resources=pipeline_step.resources,
            progress=progress or Progress(pipeline_step.name, rows_name=pipeline_step.noun),
        )
    except Unsettled as unsettled:
        raise _unsettled(pipeline_step, unsettled) from None
    records = [*pipeline_step.carried(lake), *records]
    if not pipeline_step.may_be_empty and not any(record.rows_out for record in records):
        for unit in units if pipeline_step.reads_the_web else ():
            ledger.forget(unit.id)
        raise _nothing_accepted(pipeline_step, records)
    version = dataset.publish(
        kind=pipeline_step.kind,
        records=records,
        parents=parents,
        config=pipeline_step.settings,
        fingerprint=pipeline_step.fingerprint,
        is_head=False,
    )
    return _as_head(dataset, version) if pipeline_step.is_head else version


def _as_head(dataset: Dataset, version: Version) -> Version:
    """Make a version the head, or the version that replaced it when rows of it were taken down."""
    version = after_takedowns(dataset, version)
    dataset.set_head(version)
    return version


def _nothing_accepted(pipeline_step: PipelineStep, records: Sequence[UnitRecord]) -> AltDiffusionError:
    reasons: dict[str, int] = {}
    for record in records:
        for reason, count in record.rejects_by_reason.items():
            reasons[reason] = reasons.get(reason, 0) + count
    rows = sum(record.rows_in for record in records)
    return AltDiffusionError(
        f"dataset {pipeline_step.output}",
        f"would be empty: of {rows:,} rows none was accepted ({_counted(reasons) or 'there were no rows'})",
        pipeline_step.when_empty,
    )


def _unsettled(pipeline_step: PipelineStep, found: Unsettled) -> AltDiffusionError:
    accepted = f"{found.accepted:,} were accepted" if found.accepted else "none was accepted"
    return AltDiffusionError(
        f"dataset {pipeline_step.output}",
        f"is not made: {pipeline_step.name} stopped, because of {found.rows:,} rows tried in {found.unit_id} "
        f"{accepted} ({_counted(found.reasons)}), which could be the doing of this machine or its network; none of "
        "this is recorded",
        pipeline_step.when_unsettled,
    )


def _counted(reasons: Mapping[str, int]) -> str:
    """Return the reasons with their counts, the most frequent first."""
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1]))


def _missing(dataset: Dataset, infos: Sequence[Any]) -> set[str]:
    """Return the SHA-256 of the missing files, from two listings for any number of shards."""
    present = {
        name.removesuffix(".parquet")
        for folder in ("shards", "rejects")
        for name in files.list_names(files.join(dataset.folder_uri, folder))
    }
    return {info.sha256 for info in infos} - present


def _forget_lost(dataset: Dataset, ledger: Ledger, units: Sequence[Unit]) -> None:
    """Forget recorded units whose files have been lost, so that they are done again."""
    wanted = {unit.id for unit in units}
    records = [record for record in ledger.all().values() if record.unit_id in wanted]
    lost = _missing(dataset, [info for record in records for info in (*record.shards, *record.rejects)])
    for record in records:
        if any(info.sha256 in lost for info in (*record.shards, *record.rejects)):
            ledger.forget(record.unit_id)
