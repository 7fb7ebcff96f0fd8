"""The jobs of a campaign, read from their configs and put into an order in which each finds what it reads."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from altdiffusion.config import from_dict, load_tree
from altdiffusion.diffusion.hub import is_hub_id
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage.files import is_local
from altdiffusion.training.run.record import run_named
from pipelines.kinds import CONFIGS, config_class, kind_of

RANK = ("curate", "import", "parallel", "score", "encode", "train", "generate", "evaluate", "measure")
"""Which of two jobs is first where none needs the other."""
STAGES = ("distillation", "alignment", "quality", "guidance")
Thing = tuple[str, str]
"""What a job makes or reads: ("dataset" or "run", its name)."""


@dataclass(frozen=True, kw_only=True)
class PlannedJob:
    """One job and its config."""

    file: str
    kind: str
    """As in `python -m jobs.KIND`."""
    config: Any

    @property
    def name(self) -> str:
        """The name of its run."""
        return str(self.config.run_name)

    @property
    def stage(self) -> str | None:
        """The stage that a training job trains."""
        return str(self.config.train.stage) if self.kind == "train" else None

    @property
    def makes(self) -> list[Thing]:
        """What it leaves in the lake."""
        return list(_makes(self.kind, self.config))

    @property
    def reads(self) -> list[Thing]:
        """What it needs of the lake."""
        return list(_reads(self.kind, self.config))


def read_jobs(patterns: Sequence[str]) -> list[PlannedJob]:
    """Return the jobs of config files, which may be given as patterns.

    Raises:
        AltDiffusionError: no file is there, one is not a job's config or is wrong, or they are of several lakes.
    """
    jobs = [_job(path) for path in _paths(patterns)]
    first = jobs[0]
    for job in jobs[1:]:
        if job.config.lake.rstrip("/") != first.config.lake.rstrip("/"):
            raise AltDiffusionError(
                f"config {job.file}",
                f"is of the lake {job.config.lake}, and {first.file} of {first.config.lake}",
                "plan each lake by itself, or give both the same lake",
            )
    return jobs


def ordered(jobs: Sequence[PlannedJob], there: Collection[str]) -> tuple[list[PlannedJob], list[Thing]]:
    """Return the jobs in an order in which each finds what it reads, and the datasets that none of them makes.

    Args:
        there: names of runs and datasets that the lake has.

    Raises:
        AltDiffusionError: two jobs make the same thing, a run is read that none of them makes, or they need each other.
    """
    makers: dict[Thing, PlannedJob] = {}
    for job in jobs:
        for thing in job.makes:
            other = makers.setdefault(thing, job)
            if other is not job:
                raise AltDiffusionError(
                    f"{thing[0]} {thing[1]}",
                    f"is made by two configs: {other.file} and {job.file}",
                    "give one of them, or another name",
                )
    given: dict[Thing, None] = {}
    for job in jobs:
        for thing in job.reads:
            if thing in makers or thing[1] in there or _in_lake(job, thing):
                continue
            if thing[0] == "run":
                raise AltDiffusionError(
                    f"config {job.file}",
                    f"reads the run {thing[1]}, which none of these configs makes",
                    f"give its config too, or --there {thing[1]} where the lake has it",
                )
            given[thing] = None
    return list(_sorted(jobs, makers)), list(given)


def _sorted(jobs: Sequence[PlannedJob], makers: dict[Thing, PlannedJob]) -> Iterator[PlannedJob]:
    left = sorted(jobs, key=lambda job: (RANK.index(job.kind), STAGES.index(job.stage) if job.stage else 0))
    while left:
        waits = {id(job) for job in left}
        free = [job for job in left if waits.isdisjoint({id(makers.get(thing)) for thing in job.reads} - {id(job)})]
        if not free:
            raise AltDiffusionError(
                f"configs {', '.join(job.file for job in left)}", "need each other", "correct what one of them reads"
            )
        left = [job for job in left if job is not free[0]]
        yield free[0]


def _paths(patterns: Sequence[str]) -> list[str]:
    found: dict[str, None] = {}
    for pattern in patterns:
        if os.path.isfile(pattern):
            matches = [pattern]
        else:
            matches = sorted(path for path in glob.glob(pattern) if os.path.isfile(path))
        if not matches:
            raise AltDiffusionError(
                f"--config {pattern}", "matches no file", "give config files, as in jobs/configs/m18/*.yaml"
            )
        for path in matches:
            if any(os.path.samefile(path, other) for other in found):
                raise AltDiffusionError(f"config {path}", "is given twice", "give it once")
            found[path] = None
    return list(found)


def _job(path: str) -> PlannedJob:
    tree = load_tree(path)
    kind = kind_of(tree, "")
    if kind is None:
        shared = {job: len(tree.keys() & config_class(job).__dataclass_fields__.keys()) for job in CONFIGS}
        own = {job: count - ("lake" in tree) - ("tracking" in tree) - ("name" in tree) for job, count in shared.items()}
        kind = max(own, key=lambda job: own[job])
        if own[kind] <= 0:
            raise AltDiffusionError(
                f"config {path}", "is not the config of a job", f"give configs of {', '.join(sorted(CONFIGS))}"
            )
    return PlannedJob(file=path, kind=kind, config=from_dict(config_class(kind), tree, path))


def _makes(kind: str, config: Any) -> Iterator[Thing]:
    names: list[str] = []
    match kind:
        case "curate":
            names = [config.candidates, config.links, config.images]
        case "import":
            names = [config.dataset]
        case "parallel":
            names = [config.pairs, config.candidates, config.held_out]
        case "score":
            names = [config.scores]
        case "encode":
            names = [config.latents, *(also.latents for also in config.also)]
            names += [f"{name}-held-out" for name in names] if config.held_out else []
        case "generate":
            names = [config.prompts, config.generations]
        case "train":
            yield "run", config.train.run
        case "evaluate":
            names = [f"{config.name}-{state.name}" for state in config.states]
        case "measure":
            names = [f"{config.name}-{state}-features" for state in config.states]
    yield from (("dataset", name) for name in names)


def _reads(kind: str, config: Any) -> Iterator[Thing]:
    names: list[str | None] = []
    runs: list[str | None] = []
    match kind:
        case "score":
            names = [config.images]
        case "encode":
            names = [config.images, config.scores]
        case "train":
            train = config.train
            names = [dataset.name for dataset in train.datasets]
            names.append(train.validation.dataset if train.validation is not None else None)
            names.append(train.distillation.held_out if train.distillation is not None else None)
            encoder = train.start.text_encoder
            runs = [train.start.checkpoint, train.continue_from, train.continue_as]
            runs.append(encoder if encoder and "/" not in encoder and not is_hub_id(encoder) else None)
        case "generate":
            runs = [config.generate.model.run]
        case "evaluate":
            runs = [state.model.run for state in config.states]
            names = [*(config.image_datasets if config.labels is not None else ()), _reference(config.measures)]
        case "measure":
            names = [*config.states.values(), _reference(config.measures)]
    yield from (("dataset", _plain(name)) for name in names if name)
    yield from (("run", _plain(run)) for run in runs if run)


def _reference(measures: Any) -> str | None:
    return None if measures is None else measures.reference


def _plain(name: str) -> str:
    return name.partition("@")[0]


def _in_lake(job: PlannedJob, thing: Thing) -> bool:
    """Return whether a lake on this machine has a run."""
    lake = job.config.lake
    return thing[0] == "run" and is_local(lake) and run_named(lake, thing[1]) is not None
