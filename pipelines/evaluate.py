"""Evaluation: each state of the model draws the same prompts, and a judge names the images, as a table per language."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from altdiffusion.config import added, operational
from altdiffusion.constraints import Invalid
from altdiffusion.diffusion.autoencoder import load_autoencoder
from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.measures.checks import check_measures
from altdiffusion.evaluation.measures.settings import MeasuresConfig
from altdiffusion.evaluation.retrieval_accuracy import read_cases, select_cases
from altdiffusion.execution.pipeline_step import PipelineStep
from altdiffusion.generation.prompts import read_prompts
from altdiffusion.generation.settings import GenerateConfig, ModelConfig, PromptsConfig, SamplerName
from altdiffusion.languages import CODES
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake
from pipelines.common import JobConfig, Plan, Survey, Workers, look_at
from pipelines.generate import generation_pipeline_steps, opened
from pipelines.measures import MeasureJobConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class StateConfig:
    """A state of the model, which is one row of the table."""

    name: str
    model: ModelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How all states draw."""

    sampler: SamplerName = "ddim"
    steps: int = 20
    guidance_scale: float = 3.0
    batch_rows: int = 64
    rows_per_unit: int = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeConfig:
    """The classifier that names images. It is trained on the curated images; the generator never sees it."""

    seed: int = 0
    steps: int = 700


@dataclass(frozen=True, kw_only=True, slots=True)
class RequireConfig:
    """What the last state must reach; otherwise the job fails."""

    others_at_least: float
    """Mean accuracy over the languages other than English."""
    others_to_english_at_least: float
    """That mean divided by the same state's English accuracy."""
    lowest_to_english_at_least: float
    """The lowest language's accuracy divided by English."""
    concepts_at_least: int = 100
    """Number of concepts below which the result proves nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig(JobConfig):
    """`jobs/evaluate.py`."""

    name: str = operational("evaluate")
    """Name of the run in MLflow, and prefix of the names of the datasets that the job makes."""
    cases: str = operational()
    """JSON lines: a prompts file whose rows also hold `concept` and `seen`. Its content matters, not its path."""
    labels: str = operational()
    """Parquet (sample_id, concept) of what the curated images show."""
    images: str = "images"
    """Dataset of curated images."""
    autoencoder: str = operational()
    """Folder of the VAE through which a control shows real images to the judge."""
    states: tuple[StateConfig, ...]
    """States in the order of the table; `require` applies to the last one."""
    sampling: SamplingConfig = SamplingConfig()
    judge: JudgeConfig = JudgeConfig()
    require: RequireConfig | None = None
    languages: tuple[str, ...] = CODES
    output: str = operational()
    """Local path without suffix: OUTPUT.json, OUTPUT.md and OUTPUT.txt are written."""
    workers: Workers = operational(factory=Workers)
    measures: MeasuresConfig | None = added(None)
    """What is measured besides; OUTPUT-measures.json and OUTPUT-measures.md are written. Null measures nothing."""

    def conflicts(self) -> Iterator[Invalid]:
        names = [state.name for state in self.states]
        if not names or len(set(names)) != len(names):
            yield Invalid("states", "must be at least one, each with its own name", "name each once")
        measure_config(self)  # raises what does not fit

    @property
    def run_name(self) -> str:
        return self.name


def pipeline_steps(config: EvaluateConfig, state: StateConfig) -> Sequence[PipelineStep]:
    """Return the pipeline steps that draw the cases with one state."""
    generate = GenerateConfig(
        model=state.model,
        prompts=_cases(config),
        sampler=config.sampling.sampler,
        steps=config.sampling.steps,
        guidance_scale=config.sampling.guidance_scale,
        batch_rows=config.sampling.batch_rows,
        rows_per_unit=config.sampling.rows_per_unit,
        image_files=False,
    )
    return generation_pipeline_steps(
        config.lake, f"{config.name}-prompts", f"{config.name}-{state.name}", generate, config.workers
    )


def measure_config(config: EvaluateConfig) -> MeasureJobConfig | None:
    """Return the measures of an evaluation as the job that makes them; None if there are none."""
    if config.measures is None:
        return None
    return MeasureJobConfig(
        lake=config.lake,
        name=config.name,
        cases=config.cases,
        states={state.name: f"{config.name}-{state.name}" for state in config.states},
        measures=config.measures,
        output=f"{config.output}-measures",
        workers=config.workers,
    )


def _cases(config: EvaluateConfig) -> PromptsConfig:
    """Return the cases as prompts: all of them are drawn, because a table of fewer would be another table."""
    return PromptsConfig(file=config.cases, languages=config.languages, strict=True)


def survey(config: EvaluateConfig, remote: bool = False) -> Survey:
    """Return the inputs, and which of cases, labels, images, autoencoder and models of the states are missing."""

    def files_there(lake: Lake) -> list[str]:
        prompts = read_prompts(_cases(config)).accepted
        select_cases(read_cases(config.cases), prompts["id"].to_pylist())
        for uri in (config.labels, files.join(config.autoencoder, "config.json")):
            if not files.exists(uri):
                raise AltDiffusionError(f"file {uri}", "is not there", "check labels and autoencoder in the config")
        load_autoencoder(config.autoencoder)
        return [f"cases  {prompts.num_rows:,}", f"judge  learns from {lake.version(config.images).ref.short}"]

    def model_there(state: StateConfig) -> Callable[[Lake], list[str]]:
        return lambda lake: [f"{state.name}  {opened(state.model, lake.uri, 'float32')[0].ref.short}"]

    measures = config.measures
    measured = [lambda lake: check_measures(measures, lake, config.cases)] if measures is not None else []
    return look_at(config.lake, remote, files_there, *(model_there(state) for state in config.states), *measured)


def plan(config: EvaluateConfig) -> Plan:
    """Return what the job will do."""
    steps = tuple(
        f"{state.name}: {pipeline_steps(config, state)[-1].describe()}, model {state.model.folder or state.model.run}"
        for state in config.states
    )
    return Plan(
        title=f"evaluate {len(config.states)} states on {config.cases}",
        steps=(*steps, "train the judge on the curated images, name every drawn image, write the table"),
        facts={
            "sampler": f"{config.sampling.sampler}, {config.sampling.steps} steps, "
            f"guidance {config.sampling.guidance_scale:g}",
            "required": "nothing"
            if config.require is None
            else f"others {config.require.others_at_least:g}, "
            f"to English {config.require.others_to_english_at_least:g}, "
            f"lowest {config.require.lowest_to_english_at_least:g}",
        },
    )
