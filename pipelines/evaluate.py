"""Evaluation: each state of the model draws the same prompts, and judges name the images, as a table per language."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from altdiffusion.config import added, operational, semantic
from altdiffusion.constraints import DATASET_NAME, Checked, Invalid, not_empty
from altdiffusion.diffusion.autoencoder import load_autoencoder
from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.labels import LabelledImages
from altdiffusion.evaluation.measures.checks import check_measures
from altdiffusion.evaluation.measures.settings import MeasuresConfig
from altdiffusion.evaluation.retrieval_accuracy import ENGLISH
from altdiffusion.evaluation.thresholds import RequireConfig
from altdiffusion.evaluation.training_data import TrainingData
from altdiffusion.execution.pipeline_step import PipelineStep
from altdiffusion.generation.settings import DrawingConfig, GenerateConfig, ImageFiles, ModelConfig, PromptsConfig
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from pipelines.cases import Cases, read_cases
from pipelines.common import JobConfig, Plan, Survey, Workers, device_conflicts, look_at
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


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig(JobConfig):
    """`jobs/evaluate.py`."""

    name: str = operational("evaluate")
    """Name of the run in MLflow, and prefix of the names of the datasets that the job makes."""
    cases: str = operational()
    """A prompts file whose rows also hold `concept` and `seen` or `group`. Its content matters, not its path."""
    labels: str = operational()
    """Parquet (sample_id, concept and, optionally, use) of what the images show and are for: `judge`, which teaches the
    judge (a file without `use`, or null); `control`, which neither model nor judge sees; `generator`, which the model
    has learned from."""
    images: str | tuple[str, ...] = "images"
    """Dataset of the labelled images, or several."""
    autoencoder: str = operational()
    """Folder of the VAE through which a control shows real images to the judge."""
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
    measures: MeasuresConfig | None = added(None)
    """What is measured besides; OUTPUT-measures.json and OUTPUT-measures.md are written. Null measures nothing."""

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
        if len(set(names)) != len(names):
            yield Invalid("states", "must have a name of its own each", "name each once")
        for place, name in enumerate(names):
            if name == "prompts":
                yield Invalid(f"states.{place}.name", "is that of the dataset of prompts", "give another name")
        for name in ("prompts", *names):
            yield from DATASET_NAME.check("name", f"{self.name}-{name}")
        try:
            drawing(self, self.states[0])
        except Invalid as wrong:
            yield Invalid(f"sampling.{wrong.key}", wrong.problem, wrong.remedy)
        yield from device_conflicts(self, self.workers, {"sampling.device": self.sampling.device})
        measure_config(self)  # raises what does not fit

    @property
    def run_name(self) -> str:
        return self.name


def drawing(config: EvaluateConfig, state: StateConfig) -> GenerateConfig:
    """Return how one state draws the cases."""
    settings = {field.name: getattr(config.sampling, field.name) for field in dataclasses.fields(DrawingConfig)}
    return GenerateConfig(model=state.model, prompts=cases_as_prompts(config), **settings)


def pipeline_steps(config: EvaluateConfig, state: StateConfig) -> Sequence[PipelineStep]:
    """Return the pipeline steps that draw the cases with one state."""
    return generation_pipeline_steps(
        config.lake, f"{config.name}-prompts", f"{config.name}-{state.name}", drawing(config, state), config.workers
    )


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
        states={state.name: f"{config.name}-{state.name}" for state in config.states},
        measures=config.measures,
        output=f"{config.output}-measures",
        workers=config.workers,
    )


def cases_as_prompts(config: EvaluateConfig) -> PromptsConfig:
    """Return the cases as prompts: all of them are drawn, because a table of fewer would be another table."""
    return PromptsConfig(file=config.cases, languages=config.languages, strict=True)


def cases_of(config: EvaluateConfig) -> Cases:
    """Return the cases of a job; it raises as `read_cases`."""
    return read_cases(cases_as_prompts(config), config.sampling.count)


def protocol(config: EvaluateConfig, lake: Lake, cases: Cases) -> dict[str, Any]:
    """Return what decides an outcome besides the model. Evaluations with equal protocols can be compared.

    One of an earlier version, whose judge answered with all concepts that it had learned, is equal only where these are
    the cases' concepts.
    """
    images = [str(lake.version(name).ref) for name in config.image_datasets]
    learned = labelled_of(config, lake, cases).concepts("judge")
    return {
        "cases": cases.sha256,
        "sampling": semantic(config.sampling),
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


def labelled_of(config: EvaluateConfig, lake: Lake, cases: Cases | None) -> LabelledImages:
    """Return the labelled images of a job; it raises as `labelled_images`, for the concepts of the cases if given."""
    return labelled_images(config.image_datasets, config.labels, lake, cases.concepts if cases is not None else ())


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
        check_device(config.judge)
        cases = found[0] if found else None
        images = labelled_of(config, lake, cases)
        labelled.append(images)
        concepts = cases.concepts if cases is not None else sorted(images.concepts("judge"))
        return judge_lines(images, judge_side(config.judge, images, cases), concepts)

    def autoencoder_there(_: Lake) -> list[str]:
        load_autoencoder(config.autoencoder)
        return []

    def output_there(_: Lake) -> list[str]:
        files.check_local_output(f"evaluation's output {config.output}", f"{config.output}.json")
        return []

    def model_there(state: StateConfig) -> Callable[[Lake], list[str]]:
        def there(lake: Lake) -> list[str]:
            lines = model_lines(drawing(config, state), lake.uri, found[0].prompts if found else None)
            models.append(state.name)
            return [f"{state.name}  {line}" for line in lines]

        return there

    def measures_there(lake: Lake) -> list[str]:
        if config.measures is None:
            return []
        return check_measures(config.measures, lake, config.cases, found[0].images_by_language if found else None)

    def nothing_shared(lake: Lake) -> list[str]:
        if not labelled or len(models) < len(config.states):  # which was reported
            return []
        states = training_of(config, lake)
        warnings = shared_warnings(config.judge, config.labels, labelled[0], states)
        return [*training_lines(states), *(f"warning  {text}" for text in warnings)]

    models_there = map(model_there, config.states)
    return [cases_there, judge_there, autoencoder_there, output_there, *models_there, nothing_shared, measures_there]


def survey(config: EvaluateConfig, remote: bool = False) -> Survey:
    """Return the inputs, and which of cases, labels, images, autoencoder, output and models are missing or wrong."""
    return look_at(config.lake, remote, *looks(config))


def plan(config: EvaluateConfig) -> Plan:
    """Return what the job will do."""
    steps = tuple(
        f"{state.name}: {pipeline_steps(config, state)[-1].describe()}, model {state.model.folder or state.model.run}"
        for state in config.states
    )
    sampling, required = config.sampling, config.require
    judges = "the judge" if config.judge.seeds == 1 else f"{config.judge.seeds} judges"
    return Plan(
        title=f"evaluate {len(config.states)} states on {config.cases}",
        steps=(*steps, f"train {judges} on the labelled images, name every drawn image, write the table"),
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
