"""Pipeline steps: each reads durable datasets and makes one. Run again, it does only what is not recorded yet."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from altdiffusion.config import fingerprint
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.batch_spill import Spill
from altdiffusion.execution.progress import Progress
from altdiffusion.execution.runner import run_units
from altdiffusion.execution.units import Backend, Pool, Resources, Unit, Unsettled, Work
from altdiffusion.records import Kind
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.cleansing import cleansed_records, is_clean
from altdiffusion.storage.dataset import ROLES, Dataset, Lake, Outcome, Version, check_name
from altdiffusion.storage.documents import NAME
from altdiffusion.storage.ledger import Ledger, UnitRecord
from altdiffusion.storage.ledger_pages import read_ledger
from altdiffusion.storage.removal import after_takedowns
from altdiffusion.storage.shards import ShardInfo
from altdiffusion.storage.summaries import read_summaries

NAMED_OUTPUTS = 3
"""Number of outputs up to which a progress line names each of them."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """A dataset that a pipeline step makes, with a ledger and versions of its own."""

    dataset: str
    """Name of the dataset."""
    kind: Kind
    settings: Mapping[str, Any]
    """Everything that decides the result besides the parents; the manifest stores it."""
    carried: Callable[[Lake], Sequence[UnitRecord]] = lambda _: ()
    """Records that are taken over unchanged from the previous version of the same dataset."""

    def __post_init__(self) -> None:
        check_name(self.dataset)  # when it is planned, not hours later when the pipeline step before it has ended

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of `settings`, which names the ledger."""
        return fingerprint(self.settings)

    def ledger(self, lake: Lake) -> Ledger:
        """Return the ledger of the output's units."""
        return lake.dataset(self.dataset).ledger(self.fingerprint)


@dataclass(frozen=True, kw_only=True)
class PipelineStep:
    """A pipeline step as it is planned; `parents`, `units` and `work` read the lake, and are called when it runs."""

    name: str
    """The verb, a plain name: select, deduplicate, download, encode, generate. It is kept next to each manifest."""
    outputs: tuple[Output, ...]
    """What it makes. The units are the same for all outputs, and one reading of their rows serves all of them."""
    noun: str
    """What the progress line counts, in the plural."""
    parents: Callable[[Lake], Sequence[Ref]]
    units: Callable[[Lake], Sequence[Unit]]
    work: Callable[[Lake], Work]
    pool: Pool = field(default_factory=Pool)
    resources: Resources = field(default_factory=Resources)
    is_head: bool = True
    """Whether a version becomes what its dataset's bare name means; false where another step continues from it."""
    may_be_empty: bool = False
    """Whether a version without a row is a valid result (a list of what to drop) and not a mistake."""
    when_empty: str = "loosen the filters, or check the input"
    """Remedy to print when no row is accepted."""
    reads_the_web: bool = False
    """Whether the same units may give other rows at another time. If then no row is accepted, no record is left, and
    the next start tries again."""
    spills: bool = False
    """Whether unfinished units keep spill files. Their rows are counted while units run, and leftovers of other units
    are removed at the end."""
    when_unsettled: str = "run it again"
    """Remedy to print when units stay `Unsettled`."""

    def __post_init__(self) -> None:
        if not self.outputs or len({output.dataset for output in self.outputs}) != len(self.outputs):
            raise ValueError(f"pipeline step {self.name}: needs outputs, each with a dataset of its own")
        if not NAME.fullmatch(self.name):
            raise ValueError(f"pipeline step {self.name!r}: is not named by a plain name")

    @property
    def output(self) -> Output:
        """The output of a pipeline step that has exactly one."""
        (output,) = self.outputs
        return output

    @property
    def target(self) -> str:
        """The names of all outputs, as in "dataset latents" or "datasets latents, small"."""
        return f"dataset{'s' * (len(self.outputs) > 1)} {', '.join(output.dataset for output in self.outputs)}"

    def describe(self) -> str:
        """Return one line for the plan."""
        pool, need = self.pool, self.resources
        gpus = f" + {need.num_gpus:g} GPU" if need.num_gpus else ""
        workers = f"{pool.min_size}-{pool.max_size} workers of {need.num_cpus:g} CPU{gpus}"
        kinds = ", ".join(dict.fromkeys(output.kind for output in self.outputs))
        return f"{self.name} -> {self.target} ({kinds}), {workers}"

    def progress(self) -> Progress:
        """Return the progress line, which names the outputs where there are several."""
        several = len(self.outputs) > 1
        made = self.target if len(self.outputs) <= NAMED_OUTPUTS else f"{len(self.outputs)} datasets"
        return Progress(f"{self.name} -> {made}" if several else self.name, rows_name=self.noun)


def published(lake: Lake, pipeline_step: PipelineStep) -> tuple[Version, ...] | None:
    """Return the versions that were already made from the parents as they are now, one per output.

    Returns:
        None if an output has no such version, or a file of it is missing.
    """
    parents = pipeline_step.parents(lake)
    versions = [_published(lake, output, parents) for output in pipeline_step.outputs]
    found = tuple(version for version in versions if version is not None)
    return found if len(found) == len(versions) else None


def run_pipeline_step(
    lake: Lake, pipeline_step: PipelineStep, *, backend: Backend, progress: Progress | None = None
) -> tuple[Version, ...]:
    """Make what is not recorded yet, publish the version of each output, and return them.

    Outputs that are published already are left alone: an output that lost a file is made without the others.

    Raises:
        AltDiffusionError: an input is unusable, no row of an output was accepted, or too many units stayed unsettled.
            The output in question is not published.
    """
    parents = pipeline_step.parents(lake)
    found = {output.dataset: _published(lake, output, parents) for output in pipeline_step.outputs}
    missing = [output for output in pipeline_step.outputs if found[output.dataset] is None]
    units = pipeline_step.units(lake) if missing else ()
    if missing:
        _run_missing(lake, pipeline_step, missing, units, backend, progress or pipeline_step.progress())
    versions = []
    for output in pipeline_step.outputs:
        version = found[output.dataset] or _publish(lake, pipeline_step, output, parents, units)
        versions.append(_as_head(lake.dataset(output.dataset), version) if pipeline_step.is_head else version)
    return tuple(versions)


def _published(lake: Lake, output: Output, parents: Sequence[Ref]) -> Version | None:
    dataset = lake.dataset(output.dataset)
    texts = tuple(str(parent) for parent in parents)
    for digest, summary in read_summaries(dataset).whole().items():
        if (summary.parents, summary.fingerprint) != (texts, output.fingerprint):
            continue
        version = dataset.open(digest)
        counting = after_takedowns(dataset, version)  # files that only an earlier version had are not made again
        if not _missing(dataset, (*counting.shards, *counting.rejects)) and is_clean(counting):
            return version
    return None


def _run_missing(
    lake: Lake,
    pipeline_step: PipelineStep,
    outputs: Sequence[Output],
    units: Sequence[Unit],
    backend: Backend,
    progress: Progress,
) -> None:
    """Run the units that some outputs lack."""
    for output in outputs:
        _forget_lost(lake.dataset(output.dataset), output.ledger(lake), units)
    spills = [Spill(lake.dataset(output.dataset)) for output in outputs if pipeline_step.spills]
    if spills:
        progress.count_unfinished(spills[0].rows)  # a batch of rows is spilled for all outputs
    try:
        run_units(
            pipeline_step.work(lake),
            units,
            {output.dataset: output.ledger(lake) for output in outputs},
            backend=backend,
            pool=pipeline_step.pool,
            resources=pipeline_step.resources,
            progress=progress,
        )
    except Unsettled as unsettled:
        raise _unsettled(pipeline_step, unsettled) from None
    for spill in spills:
        spill.clear()


def _publish(
    lake: Lake, pipeline_step: PipelineStep, output: Output, parents: Sequence[Ref], units: Sequence[Unit]
) -> Version:
    """Publish the version of one output from its ledger; few of the records are in memory at a time."""
    ledger = output.ledger(lake)
    dataset = lake.dataset(output.dataset)
    carried = cleansed_records(dataset, output.kind, output.carried(lake))
    finished = read_ledger(ledger).of_units([unit.id for unit in units])
    made = Outcome(itertools.chain(carried, cleansed_records(dataset, output.kind, finished, ledger)))
    if not pipeline_step.may_be_empty and not made.rows:
        for unit in units if pipeline_step.reads_the_web else ():
            ledger.forget(unit.id)
        raise _nothing_accepted(output, made, pipeline_step.when_empty)
    return dataset.publish(
        kind=output.kind,
        records=made,
        parents=parents,
        config=output.settings,
        fingerprint=output.fingerprint,
        made_by=pipeline_step.name,
        is_head=False,
    )


def _as_head(dataset: Dataset, version: Version) -> Version:
    """Make a version the head, or the version that replaces it since rows of it were taken down."""
    version = after_takedowns(dataset, version)
    dataset.set_head(version)
    return version


def _nothing_accepted(output: Output, made: Outcome, remedy: str) -> AltDiffusionError:
    reasons = _counted(made.rejects_by_reason) or "there were no rows"
    return AltDiffusionError(
        f"dataset {output.dataset}",
        f"would be empty: of {made.rows_in:,} rows none was accepted ({reasons})",
        remedy,
    )


def _unsettled(pipeline_step: PipelineStep, found: Unsettled) -> AltDiffusionError:
    accepted = f"{found.accepted:,} were accepted" if found.accepted else "none was accepted"
    return AltDiffusionError(
        pipeline_step.target,
        f"is not made: {pipeline_step.name} stopped, because of {found.rows:,} rows tried in {found.unit_id} "
        f"{accepted} ({_counted(found.reasons)}), which could be the doing of this machine or its network; none of "
        "this is recorded",
        pipeline_step.when_unsettled,
    )


def _counted(reasons: Mapping[str, int]) -> str:
    """Return the reasons with their counts, the most frequent one first."""
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1]))


def _missing(dataset: Dataset, infos: Sequence[ShardInfo]) -> bool:
    return not {info.sha256 for info in infos} <= _present(dataset)


def _present(dataset: Dataset) -> set[str]:
    """Return the SHA-256 of the files that are there; this takes two listings, whatever the number of shards."""
    return {
        name.removesuffix(".parquet")
        for folder in ROLES
        for name in files.list_names(files.join(dataset.folder_uri, folder))
    }


def _forget_lost(dataset: Dataset, ledger: Ledger, units: Sequence[Unit]) -> None:
    """Forget recorded units whose files were lost, so that they are done again."""
    state = read_ledger(ledger)  # before the files are listed: a unit's files are older than its record
    if not len(state):
        return
    wanted, present = {unit.id for unit in units}, _present(dataset)
    for unit_id, named in state.files():
        if unit_id in wanted and not present.issuperset(named):
            ledger.forget(unit_id)
