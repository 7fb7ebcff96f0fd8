"""The part that all job configs share: where the lake is, where work runs, where runs are tracked."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from altdiffusion.config import added, operational
from altdiffusion.constraints import Checked, Invalid, at_least, each, positive
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.pipeline_step import Output, PipelineStep
from altdiffusion.execution.units import Pool, Resources
from altdiffusion.records import Kind
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.files import is_local
from altdiffusion.storage.ledger import UnitRecord

_AMOUNT = positive("give an amount per worker, as in {curation: 1}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutionConfig(Checked):
    """Where units run. Nothing here changes their results."""

    backend: Literal["ray", "inline"] = "ray"
    """`ray`: on Ray Data; `inline`: one after another in this process, for debugging."""
    address: str | None = None
    """Address of a Ray cluster; null means the cluster that this job was submitted to, or else an embedded one."""
    num_cpus: int | None = None
    """CPUs of an embedded cluster; null takes all CPUs of this machine."""
    wait_for_nodes_s: Annotated[float, positive("1800 waits half an hour")] = added(1800.0)
    """Seconds that workers may wait for the nodes of a cluster before the job ends with an error."""
    log_format: Literal["text", "json"] = added("text")
    """`json`: every line that the job and its workers print or log is one JSON object with time, level, job and run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig(Checked):
    """Where MLflow is, and what it shows of the machine."""

    uri: str | None = None
    """Tracking URI; null means SQLite at <lake>/mlflow.db, for a lake on this machine."""
    experiment: str = "altdiffusion"
    """Name of the experiment in MLflow."""
    system_metrics: bool = False
    """Measure CPU, memory, disk, network and GPUs of the machine that the job is started on; needs psutil."""

    def conflicts(self) -> Iterator[Invalid]:
        if self.system_metrics and importlib.util.find_spec("psutil") is None:
            yield Invalid("system_metrics", "needs psutil, which is not installed", "pip install psutil, or set false")


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers(Checked):
    """The pool of workers that completes a pipeline step, and what one worker needs."""

    min: Annotated[int, at_least(1)] = 1
    """Workers of the pool at least."""
    max: int = 2
    """Workers of the pool at most."""
    cpus: Annotated[float, at_least(0)] = 1.0
    """CPUs that one worker reserves."""
    gpus: Annotated[float, at_least(0)] = 0.0
    """GPUs that one worker reserves."""
    memory_gib: Annotated[float, at_least(0)] = 0.0
    """Memory reserved per worker; 0 reserves none."""
    custom: Annotated[dict[str, float], each(_AMOUNT)] = field(default_factory=dict)
    """Custom resources of Ray that one worker reserves, as in `{curation: 1}`: it runs only on nodes that have them."""

    def conflicts(self) -> Iterator[Invalid]:
        if self.max < self.min:
            yield Invalid("max", f"is below min ({self.min})", "give at least as many")

    @property
    def pool(self) -> Pool:
        """The size of the pool."""
        return Pool(min_size=self.min, max_size=self.max)

    @property
    def resources(self) -> Resources:
        """What one worker needs."""
        return Resources(
            num_cpus=self.cpus, num_gpus=self.gpus, memory_bytes=int(self.memory_gib * 2**30), custom=self.custom
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class JobConfig(Checked):
    """Base of all job configs."""

    lake: str = operational()
    """Root of all datasets, checkpoints and exports: a folder, or any fsspec URI."""
    execution: ExecutionConfig = operational(factory=ExecutionConfig)
    tracking: TrackingConfig = operational(factory=TrackingConfig)

    @property
    def run_name(self) -> str:
        """Name of the job's one run in MLflow."""
        raise TypeError(f"{type(self).__name__} does not name its run")


def cores_of(execution: ExecutionConfig, workers: Workers) -> float:
    """Return the cores of one worker: what it reserves on Ray, or all that an inline job may use."""
    return workers.cpus if execution.backend == "ray" else float(len(os.sched_getaffinity(0)))


def device_conflicts(
    config: JobConfig, workers: Workers, devices: Mapping[str, str], section: str = "workers"
) -> Iterator[Invalid]:
    """Yield what is wrong where the workers of a pool reserve GPUs and compute without them, or the reverse.

    A worker of Ray sees the GPUs that it reserves and no others. An inline job has no pool.

    Args:
        devices: the settings of devices that the workers compute on, by key; without any, no work has use for a GPU.
        section: the key of the pool.
    """
    if config.execution.backend != "ray":
        return
    on_gpu = [key for key, device in devices.items() if device.startswith("cuda")]
    key = next(iter(on_gpu or devices), f"{section}.gpus")
    if workers.gpus and not on_gpu:
        yield Invalid(
            key,
            f"leaves the GPUs idle that {section}.gpus: {workers.gpus:g} reserves for each worker",
            f"set {section}.gpus: 0" + (f", or {key}: cuda" if devices else ""),
        )
    if on_gpu and not workers.gpus:
        yield Invalid(
            key,
            f"needs a GPU, and {section}.gpus: 0 reserves none, so that Ray hides all GPUs from the workers",
            f"set {section}.gpus: 1, or {key}: cpu",
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a job is about to do, as readable lines; `--dry-run` prints it."""

    title: str
    steps: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return the plan as text."""
        width = max((len(name) for name in self.facts), default=0)
        return [
            f"plan: {self.title}",
            *(f"  {number}. {step}" for number, step in enumerate(self.steps, 1)),
            *(f"  {name:<{width}}  {value}" for name, value in self.facts.items()),
        ]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a dry run reports on a job's inputs."""

    lines: Sequence[str] = ()
    problems: Sequence[AltDiffusionError] = ()
    """What would stop the job: the dry run prints them and fails."""


NOT_LOOKED_AT = "not looked at: the lake is not on this machine (--remote looks)"


def not_looked_at(models: Iterable[str], remote: bool) -> list[str]:
    """Return a line on each model that a dry run leaves alone because it is not on this machine."""
    return [] if remote else [f"model   {uri} not looked at (--remote looks)" for uri in models if not is_local(uri)]


def look_at(lake: str, remote: bool, *looks: Callable[[Lake], Iterable[str]], more: Sequence[str] = ()) -> Survey:
    """Return the findings of several looks at a lake, each of them lines or the first error that would stop the job.

    Args:
        lake: URI of the lake. If it is not on this machine, it is looked at only with `remote`.
        looks: each reads as little as possible and changes nothing.
        more: lines that need no look.
    """
    if not remote and not is_local(lake):
        return Survey(lines=[f"inputs  {NOT_LOOKED_AT}", *more])
    lines: list[str] = []
    problems: list[AltDiffusionError] = []
    for look in looks:
        try:
            lines += look(Lake(lake))
        except AltDiffusionError as error:
            problems.append(error)
    return Survey(lines=[*lines, *more], problems=problems)


def units_line(lake: Lake, pipeline_step: PipelineStep) -> list[str]:
    """Return how much a pipeline step has to do.

    Raises:
        AltDiffusionError: one of its inputs is missing.
    """
    pipeline_step.parents(lake)
    several = f" for {pipeline_step.target}" if len(pipeline_step.outputs) > 1 else ""
    return [f"{pipeline_step.name}  {len(pipeline_step.units(lake)):,} units of {pipeline_step.noun}{several}"]


def make_pipeline_step(
    *,
    output: str,
    kind: Kind,
    settings: Mapping[str, Any],
    carried: Callable[[Lake], Sequence[UnitRecord]] = lambda _: (),
    **given: Any,
) -> PipelineStep:
    """Return a pipeline step that makes one dataset; all other arguments are those of `make_pass`."""
    return make_pass(outputs=[Output(dataset=output, kind=kind, settings=settings, carried=carried)], **given)


def make_pass(*, outputs: Iterable[Output], workers: Workers, **given: Any) -> PipelineStep:
    """Return a pipeline step that makes several datasets, with the pool and resources that its config asks for."""
    return PipelineStep(outputs=tuple(outputs), pool=workers.pool, resources=workers.resources, **given)
