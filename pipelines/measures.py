"""Measures: generations (and real images) -> features -> FID, KID, CMMD, IS, CLIP-Sim and retrieval per language."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated

from altdiffusion.config import operational
from altdiffusion.constraints import DATASET_NAME, Invalid, not_empty
from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.measures.checks import check_measures
from altdiffusion.evaluation.measures.feature_work import FeatureWork, columns, feature_settings
from altdiffusion.evaluation.measures.settings import MeasuresConfig
from altdiffusion.execution.pipeline_step import PipelineStep
from altdiffusion.execution.ranges import plan_ranges
from altdiffusion.refs import Ref, RefKind
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from pipelines.common import JobConfig, Plan, Survey, Workers, device_conflicts, look_at, make_pipeline_step
from pipelines.estimates import WorkEstimateConfig, work_line

REFERENCE = "reference"
"""What the step of the real images is called; no state may have this name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureJobConfig(JobConfig):
    """`jobs/measure.py`: measures sets of images that were drawn already."""

    name: str = operational("measure")
    """Name of the run in MLflow, and prefix of the names of the datasets that the job makes."""
    cases: str = operational()
    """JSON lines of the prompts that were drawn: id, language, concept, prompt, and english where it has it."""
    states: Annotated[dict[str, str], not_empty("name a dataset of generations")]
    """Name of a state -> dataset of its images (`name`, or `name@digest`)."""
    measures: MeasuresConfig
    output: str = operational()
    """Local path without suffix: OUTPUT.json and OUTPUT.md are written."""
    workers: Workers = operational(factory=Workers)
    estimate: WorkEstimateConfig = operational(factory=WorkEstimateConfig)
    """What `--dry-run` assumes of the work."""

    def conflicts(self) -> Iterator[Invalid]:
        if REFERENCE in self.states:
            yield Invalid(f"states.{REFERENCE}", "is the name of the real images", "give the state another name")
        for name in (*self.states, REFERENCE):
            yield from DATASET_NAME.check("states", f"{self.name}-{name}-features")
        yield from device_conflicts(self, self.workers, {"measures.device": self.measures.device})

    @property
    def run_name(self) -> str:
        return self.name


def pipeline_steps(config: MeasureJobConfig) -> dict[str, PipelineStep]:
    """Return the pipeline step of each state by its name, and that of the real images as `reference`."""
    steps = {state: _step(config, state, dataset, config.cases) for state, dataset in config.states.items()}
    if config.measures.reference is not None:
        steps[REFERENCE] = _step(config, REFERENCE, config.measures.reference, None)
    return steps


def _step(config: MeasureJobConfig, state: str, images: str, cases: str | None) -> PipelineStep:
    """Return the step images -> features; the networks and the cases are its parents."""
    measures, output = config.measures, f"{config.name}-{state}-features"

    def others() -> list[Ref]:
        wanted = columns(measures, generated=cases is not None)
        found = []
        if measures.network is not None and {"features", "probabilities"} & set(wanted):
            found.append(_ref("model", measures.network.file, measures.network.sha256))
        if measures.judge is not None and "image_embedding" in wanted:
            found.append(_ref("model", measures.judge.folder, measures.judge.digest))
        if cases is not None:
            found.append(_ref("source", cases, files.sha256_hex(_bytes(cases))))
        return found

    return make_pipeline_step(
        name="features",
        output=output,
        kind="features",
        settings={"features": feature_settings(measures, generated=cases is not None)},
        workers=config.workers,
        noun="images",
        parents=lambda lake: [lake.version(images).ref, *others()],
        units=lambda lake: plan_ranges(lake.version(images), measures.rows_per_unit, *(str(ref) for ref in others())),
        work=lambda _: FeatureWork(lake=config.lake, dataset=output, config=measures, cases=cases),
        when_empty="give a dataset with images",
    )


def _bytes(cases: str) -> bytes:
    try:
        return files.read_bytes(cases)
    except FileNotFoundError as error:
        raise AltDiffusionError(f"cases file {cases}", "does not exist", "check the path") from error


def _ref(kind: RefKind, uri: str, digest: str) -> Ref:
    name = re.sub(r"[^A-Za-z0-9._\-]", "-", PurePosixPath(uri.rstrip("/")).name)
    return Ref(kind, name or kind, digest)


def about(measures: MeasuresConfig) -> dict[str, str]:
    """Return what the values were measured with: without this, FIDs cannot be compared."""
    facts = {}
    if measures.network is not None:
        facts["feature network"] = f"SHA-256 {measures.network.sha256}"
        facts["resize"] = f"{measures.network.resize} to {measures.network.side} pixels"
    if measures.judge is not None:
        facts["judge"] = f"digest {measures.judge.digest}"
    if measures.reference is not None:
        compared = "of the same language" if measures.reference_by_language else "all of them for every language"
        facts["real images"] = f"{measures.reference}, {compared}, each distinct image once"
    return facts


def check(config: MeasureJobConfig, lake: Lake) -> list[str]:
    """Return lines on the images of each state and on what will be measured.

    Raises:
        AltDiffusionError: a dataset is missing, or holds something other than generations; or as `check_measures`.
    """
    lines = []
    images: dict[str, int] = {}
    for state, name in config.states.items():
        version = lake.version(name)
        if version.manifest.kind != "generations":
            raise AltDiffusionError(
                version.ref.short, f"holds {version.manifest.kind}, not generations", "name a dataset of drawn images"
            )
        lines.append(f"{state}  {version.ref.short}, {version.rows:,} images")
        for code, count in version.manifest.rows_by_language.items():
            images[code] = min(count, images.get(code, count))
    return [*lines, *check_measures(config.measures, lake, config.cases, images)]


def survey(config: MeasureJobConfig, remote: bool = False) -> Survey:
    """Return the inputs, and what is wrong with the images, the cases, the networks or the reference."""

    def cases_there(_: Lake) -> list[str]:
        if remote or files.is_local(config.cases):
            _bytes(config.cases)
        return []

    more = work_line(config.estimate, config.workers.max)
    return look_at(config.lake, remote, cases_there, lambda lake: check(config, lake), more=more)


def plan(config: MeasureJobConfig) -> Plan:
    """Return what the job will do."""
    steps: Sequence[str] = [step.describe() for step in pipeline_steps(config).values()]
    return Plan(
        title=f"measure {', '.join(config.measures.measures)} of {len(config.states)} states",
        steps=(*steps, "gather the features per language, write the tables"),
        facts={**about(config.measures), "forward passes": f"{config.measures.batch} images, {config.measures.device}"},
    )
