"""Evaluation: each state of the model draws the same prompts, and judges name the images, as a table per language."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from altdiffusion.config import added, operational, semantic
from altdiffusion.constraints import DATASET_NAME, Checked, Invalid, from_below, not_empty
from altdiffusion.diffusion.autoencoder import load_autoencoder
from altdiffusion.diffusion.stock_base import stock_base_at_hand
from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.labels import LabelledImages
from altdiffusion.evaluation.measures.checks import check_measures
from altdiffusion.evaluation.measures.settings import MeasuresConfig
from altdiffusion.evaluation.retrieval_accuracy import ENGLISH
from altdiffusion.evaluation.thresholds import RequireConfig
from altdiffusion.evaluation.training_data import TrainingData
from altdiffusion.execution.pipeline_step import PipelineStep
from altdiffusion.generation.model import check_sampling, resolve_model
from altdiffusion.generation.settings import DrawingConfig, GenerateConfig, ImageFiles, ModelConfig, PromptsConfig
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from pipelines.cases import Cases, read_cases
from pipelines.common import JobConfig, Plan, Survey, Workers, device_conflicts, look_at
from pipelines.estimates import WorkEstimateConfig, work_line
from pipelines.generate import describe, generation_pipeline_steps, model_lines
from pipelines.judge_inputs import (
    JudgeConfig,
    check_device,
    judge_lines,
    judge_side,
    labelled_images,
    learned_from,
    shared_warnings,
    training_lines,
)
from pipelines.measures import MeasureJobConfig
from pipelines.sweep import Point, SweepConfig, points


@dataclass(frozen=True, kw_only=True, slots=True)
class StateConfig(Checked):
    """A state of the model, which is one row of the table."""

    name: Annotated[str, DATASET_NAME]
    """Part of the name of the dataset of its images, `<name of the job>-<name>`."""
    model: ModelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig(DrawingConfig):
    """How all states draw, with the settings of generation; `count` is the number of seeds per prompt."""

    image_files: bool | ImageFiles = operational("none")
    """Whether images are written as files too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig(JobConfig):
    """`jobs/evaluate.py`."""

    name: str = operational("evaluate")
    """Name of the run in MLflow, and prefix of the names of the datasets that the job makes."""
    cases: str = operational()
    """A prompts file whose rows also hold `concept` and `seen` or `group`. Its content matters, not its path."""
    labels: str | None = operational(None)
    """Parquet (sample_id, concept and, optionally, use) of what the images show and are for: `judge`, which teaches the
    judge (a file without `use`, or null); `control`, which neither model nor judge sees; `generator`, which the model
    has learned from. Null trains no judge: only `measures` are made."""
    images: str | tuple[str, ...] = "images"
    """Dataset of the labelled images, or several."""
    autoencoder: str | None = operational(None)
    """Folder of the VAE through which a control shows real images to the judge; needed where `labels` are given."""
    states: Annotated[tuple[StateConfig, ...], not_empty("name at least one state")]
    """States in the order of the table; `require` applies to the last one."""
    sampling: SamplingConfig = SamplingConfig()
    judge: JudgeConfig = JudgeConfig()
    require: RequireConfig | None = None
    languages: tuple[str, ...] = ()
    """Languages (BCP 47) that the cases may have; empty takes any."""
    output: str = operational()
    """Local path without suffix: OUTPUT.json, OUTPUT.md and OUTPUT.txt are written."""
    workers: Workers = operational(factory=Workers)
    estimate: WorkEstimateConfig = operational(factory=WorkEstimateConfig)
    """What `--dry-run` assumes of the work."""
    measures: MeasuresConfig | None = added(None)
    """What is measured besides; OUTPUT-measures.json and OUTPUT-measures.md are written. Null measures nothing."""
    seed: Annotated[int | None, from_below(-(2**63), 2**63)] = added(None)
    """Seed of cases that state none; null takes a hash of the prompt, so that concepts differ in their noise."""
    sweep: SweepConfig | None = added(None)
    """Settings of `sampling` that are varied besides, for curves."""

    @property
    def image_datasets(self) -> tuple[str, ...]:
        """The datasets of the labelled images."""
        return (self.images,) if isinstance(self.images, str) else self.images

    def conflicts(self) -> Iterator[Invalid]:
        if not self.image_datasets or len(set(self.image_datasets)) != len(self.image_datasets):
            yield Invalid("images", "is empty, or names a dataset twice", "name each dataset once")
        names = [state.name for state in self.states]
        for name in (self.require.states or {}) if self.require is not None else ():
            if name not in names:
                yield Invalid(f"require.states.{name}", "is not a state", f"name one of {', '.join(names)}")
        swept = [point.name for point in swept_points(self)]
        for name in sorted({name for name in swept if name in names}):
            yield Invalid("states", f"have the name {name}, which a set of the sweep has", "name the state otherwise")
        if len(set(names)) != len(names):
            yield Invalid("states", "must have a name of its own each", "name each once")
        for place, name in enumerate(names):
            if name == "prompts":
                yield Invalid(f"states.{place}.name", "is that of the dataset of prompts", "give another name")
        for name in ("prompts", *names, *swept):
            yield from DATASET_NAME.check("name", f"{self.name}-{name}")
        try:
            drawing(self, self.states[0])
        except Invalid as wrong:
            yield Invalid(f"sampling.{wrong.key}", wrong.problem, wrong.remedy)
        for point in swept_points(self):
            try:
                drawing(self, self.states[0], point)
            except Invalid as wrong:
                yield Invalid(f"sweep.{point.setting}", f"{point.value:g}: {wrong.problem}", wrong.remedy)
        yield from device_conflicts(self, self.workers, {"sampling.device": self.sampling.device})
        if self.labels is None:
            if self.measures is None:
                yield Invalid("labels", "is missing, and so is measures", "give one of them, or nothing is found out")
            if self.require is not None:
                yield Invalid("require", "needs a judge, and no labels teach one", "give labels, or set require: null")
        elif self.autoencoder is None:
            yield Invalid("autoencoder", "is missing, which the judge's control needs", "give the folder of a VAE")
        measure_config(self)  # raises what does not fit

    @property
    def run_name(self) -> str:
        return self.name


def all_points(config: EvaluateConfig) -> list[Point]:
    """Return the points of the curves, those that are the states' own sets included."""
    sampling = config.sampling
    return points(config.sweep, [state.name for state in config.states], sampling.guidance_scale, sampling.steps)


def swept_points(config: EvaluateConfig) -> list[Point]:
    """Return the sets of images that are drawn for the sweep alone."""
    return [point for point in all_points(config) if point.change]


def drawing(config: EvaluateConfig, state: StateConfig, point: Point | None = None) -> GenerateConfig:
    """Return how one state draws the cases, for a point of the sweep or (None) as `sampling` states."""
    settings = {field.name: getattr(config.sampling, field.name) for field in dataclasses.fields(DrawingConfig)}
    settings |= point.change if point is not None else {}
    return GenerateConfig(model=state.model, prompts=cases_as_prompts(config), **settings)


def pipeline_steps(config: EvaluateConfig) -> dict[str, Sequence[PipelineStep]]:
    """Return the pipeline steps that draw each set of images by its name: that of a state, or of a point."""
    states = {state.name: state for state in config.states}
    sets = {name: drawing(config, state) for name, state in states.items()}
    sets |= {point.name: drawing(config, states[point.state], point) for point in swept_points(config)}
    return {
        name: generation_pipeline_steps(
            config.lake, f"{config.name}-prompts", f"{config.name}-{name}", settings, config.workers
        )
        for name, settings in sets.items()
    }


def measure_config(config: EvaluateConfig) -> MeasureJobConfig | None:
    """Return the measures of an evaluation as the job that makes them; None if there are none."""
    if config.measures is None:
        return None
    return MeasureJobConfig(
        lake=config.lake,
        execution=config.execution,
        tracking=config.tracking,
        name=config.name,
        cases=config.cases,
        states={name: f"{config.name}-{name}" for name in pipeline_steps(config)},
        measures=config.measures,
        output=f"{config.output}-measures",
        workers=config.workers,
    )


def cases_as_prompts(config: EvaluateConfig) -> PromptsConfig:
    """Return the cases as prompts: all of them are drawn, because a table of fewer would be another table."""
    return PromptsConfig(file=config.cases, languages=config.languages, strict=True, default_seed=config.seed)


def cases_of(config: EvaluateConfig) -> Cases:
    """Return the cases of a job; it raises as `read_cases`."""
    return read_cases(cases_as_prompts(config), config.sampling.count)


def protocol(config: EvaluateConfig, lake: Lake, cases: Cases) -> dict[str, Any]:
    """Return what decides an outcome besides the model. Evaluations with equal protocols can be compared.

    One of an earlier version, whose judge answered with all concepts that it had learned, is equal only where these are
    the cases' concepts.
    """
    drawn: dict[str, Any] = {"cases": cases.sha256, "sampling": semantic(config.sampling)}
    if config.seed is not None:
        drawn["seed"] = config.seed
    if config.labels is None:
        return drawn
    images = [str(lake.version(name).ref) for name in config.image_datasets]
    learned = labelled_of(config, config.labels, lake, cases).concepts("judge")
    return {
        **drawn,
        "judge": semantic(config.judge),
        "images": images[0] if len(images) == 1 else images,
        "labels": files.sha256_hex(files.read_bytes(config.labels)),
        **({"answers": len(cases.concepts)} if learned.keys() != set(cases.concepts) else {}),
    }


def check_groups(config: EvaluateConfig, cases: Cases) -> None:
    """Refuse thresholds on names of which the cases have none in a language other than English.

    Raises:
        AltDiffusionError: there is such a threshold.
    """
    there = {case.group for case in cases.by_id.values() if case.language != ENGLISH}
    for group in config.require.groups if config.require is not None else ():
        if group not in there:
            raise AltDiffusionError(
                f"cases file {config.cases}",
                f"has no case of group {group} in a language other than English, and `require` compares them",
                "add such cases, or take that threshold out",
            )


def labelled_of(config: EvaluateConfig, labels: str, lake: Lake, cases: Cases | None) -> LabelledImages:
    """Return the labelled images of a job; it raises as `labelled_images`, for the concepts of the cases if given."""
    return labelled_images(config.image_datasets, labels, lake, cases.concepts if cases is not None else ())


def training_of(config: EvaluateConfig, lake: Lake) -> dict[str, TrainingData]:
    """Return by state what it has learned from; it raises as `learned_from`."""
    return learned_from(lake, {state.name: drawing(config, state) for state in config.states})


def looks(config: EvaluateConfig) -> list[Callable[[Lake], list[str]]]:
    """Return the checks of everything that the job needs; each returns lines on it, or raises what would stop the job.

    `--dry-run` prints all that they find, and the job itself makes the same checks before anything is drawn.
    """
    found: list[Cases] = []
    labelled: list[LabelledImages] = []
    models: list[str] = []

    def cases_there(_: Lake) -> list[str]:
        cases = cases_of(config)
        found.append(cases)
        if config.require is not None and (ENGLISH not in cases.languages or len(cases.languages) < 2):
            raise AltDiffusionError(
                f"cases file {config.cases}",
                f"has the languages {', '.join(cases.languages)}, and `require` compares others with English",
                "add cases in English and another language, or set require: null",
            )
        if config.require is not None and len(cases.concepts) < config.require.concepts_at_least:
            raise AltDiffusionError(
                f"cases file {config.cases}",
                f"has {len(cases.concepts):,} concepts, and require.concepts_at_least is "
                f"{config.require.concepts_at_least:,}",
                "add concepts, or lower require.concepts_at_least",
            )
        if config.require is not None:
            check_groups(config, cases)
        return describe(cases.prompts)

    def judge_there(lake: Lake) -> list[str]:
        if config.labels is None or config.autoencoder is None:
            return ["judge  none: no labels are given"]
        check_device(config.judge)
        load_autoencoder(config.autoencoder)
        cases = found[0] if found else None
        images = labelled_of(config, config.labels, lake, cases)
        labelled.append(images)
        concepts = cases.concepts if cases is not None else sorted(images.concepts("judge"))
        return judge_lines(images, judge_side(config.judge, images, cases), concepts)

    def output_there(_: Lake) -> list[str]:
        files.check_local_output(f"evaluation's output {config.output}", f"{config.output}.json")
        return []

    def model_there(state: StateConfig) -> Callable[[Lake], list[str]]:
        def there(lake: Lake) -> list[str]:
            lines = model_lines(drawing(config, state), lake.uri, found[0].prompts if found else None)
            models.append(state.name)
            lines += sweep_lines(config, state, lake)
            return [f"{state.name}  {line}" for line in lines]

        return there

    def measures_there(lake: Lake) -> list[str]:
        if config.measures is None:
            return []
        return check_measures(config.measures, lake, config.cases, found[0].images_by_language if found else None)

    def nothing_shared(lake: Lake) -> list[str]:
        if config.labels is None or not labelled or len(models) < len(config.states):  # which was reported
            return []
        states = training_of(config, lake)
        warnings = shared_warnings(config.judge, config.labels, labelled[0], states)
        return [*training_lines(states), *(f"warning  {text}" for text in warnings)]

    models_there = map(model_there, config.states)
    return [cases_there, judge_there, output_there, *models_there, nothing_shared, measures_there]


def sweep_lines(config: EvaluateConfig, state: StateConfig, lake: Lake) -> list[str]:
    """Return what a state draws for the sweep, after a check of its numbers of steps; it raises as `check_sampling`."""
    mine = [point for point in swept_points(config) if point.state == state.name]
    numbers = [int(point.value) for point in mine if point.setting == "steps"]
    if numbers and (
        state.model.folder is None or stock_base_at_hand(state.model.folder, lake.uri, state.model.base_configs)
    ):
        model = resolve_model(state.model, lake.uri)
        for steps in numbers:
            check_sampling(model, config.sampling.sampler, steps)
    return [f"sweep  {point.setting} {point.value:g}" for point in mine]


def survey(config: EvaluateConfig, remote: bool = False) -> Survey:
    """Return the inputs, and which of cases, labels, images, autoencoder, output and models are missing or wrong."""
    return look_at(config.lake, remote, *looks(config), more=work_line(config.estimate, config.workers.max))


def plan(config: EvaluateConfig) -> Plan:
    """Return what the job will do."""
    made = pipeline_steps(config)
    steps = tuple(
        f"{state.name}: {made[state.name][-1].describe()}, model {state.model.folder or state.model.run}"
        for state in config.states
    )
    steps += tuple(f"{point.name}: {made[point.name][-1].describe()}" for point in swept_points(config))
    sampling, required = config.sampling, config.require
    judges = "the judge" if config.judge.seeds == 1 else f"{config.judge.seeds} judges"
    return Plan(
        title=f"evaluate {len(config.states)} states on {config.cases}",
        steps=(*steps, f"train {judges} on the labelled images, name every drawn image, write the table")
        if config.labels is not None
        else steps,
        facts={
            "sampler": f"{sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance_scale:g}, "
            f"{sampling.count} per prompt",
            "draws on": f"{sampling.device}, {sampling.dtype}",
            "required": "nothing"
            if required is None
            else f"others {required.others_at_least:g}, to English {required.others_to_english_at_least:g}, "
            f"lowest {required.lowest_to_english_at_least:g}",
        },
    )
