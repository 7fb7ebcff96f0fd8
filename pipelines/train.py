"""Training jobs: one stage of the recipe per run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from altdiffusion.config import operational
from altdiffusion.constraints import Checked, Invalid
from altdiffusion.execution.pipeline_step import PipelineStep
from altdiffusion.generation.settings import GenerateConfig, ModelConfig, PromptsConfig
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.files import is_local
from altdiffusion.training.config import ObjectiveConfig, TrainConfig
from altdiffusion.training.estimate.cost import (
    EstimateConfig,
    epochs_line,
    estimate,
    lines,
    shapes_of,
)
from altdiffusion.training.estimate.student_cost import estimate_student
from altdiffusion.training.rehearse import rehearse
from pipelines.common import JobConfig, Plan, Survey, Workers, device_conflicts, look_at
from pipelines.generate import generation_pipeline_steps, sheet_lines


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplesConfig(Checked):
    """Images drawn with every kept checkpoint when training has ended, for MLflow's slider over steps."""

    prompts: PromptsConfig
    """Prompts; ids of the form <concept>-<language> give a grid of languages and concepts."""
    fonts: str
    """Local folder of fonts that together cover the scripts of all prompts."""
    steps: int = 20
    guidance_scale: float = 3.0
    batch_rows: int = 32
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    workers: Workers | None = None
    """Pool on the cluster that draws the images; without one, the job's own process draws them."""

    def conflicts(self) -> Iterator[Invalid]:
        if self.device == "cuda" and (self.workers is None or self.workers.gpus == 0):
            yield Invalid("device", "needs workers that have GPUs", "give samples.workers.gpus")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainJobConfig(JobConfig):
    """`jobs/train.py`: one stage."""

    train: TrainConfig
    samples: SamplesConfig | None = operational(None)
    estimate: EstimateConfig = operational(factory=EstimateConfig)

    def conflicts(self) -> Iterator[Invalid]:
        warmup, steps = self.train.optimizer.warmup_steps, self.train.steps
        if warmup > steps:
            yield Invalid(
                "train.optimizer.warmup_steps",
                f"is more than the run's {steps:,} steps, which would never reach its learning rate",
                f"give at most {steps}, or more train.steps",
            )
        samples = self.samples
        if samples is not None and samples.workers is not None:
            yield from device_conflicts(
                self, samples.workers, {"samples.device": samples.device}, section="samples.workers"
            )

    @property
    def run_name(self) -> str:
        return self.train.run


def plan(config: TrainJobConfig) -> Plan:
    """Return what the run will do, in readable figures."""
    train = config.train
    start = f"run {train.start.checkpoint}" if train.start.checkpoint else f"model {train.start.base}"
    if train.continue_from is not None:
        start = f"checkpoint {train.continue_from}, with its moments, position and key"
    elif train.start.text_encoder:
        start += f" with text encoder {train.start.text_encoder}"
    workers, updates = train.workers, train.steps - train.first_step
    where = f"{workers.count} x {workers.gpus:g} GPU" if workers.gpus else f"{workers.count} x {workers.cpus:g} CPU"
    return Plan(
        title=f"train stage {train.stage}, run {train.run}",
        steps=(
            f"start from {start}",
            f"{updates:,} updates of {_trained(train)} on {', '.join(d.name for d in train.datasets)}",
            f"a checkpoint every {train.checkpoint_every:,} updates, the last {train.keep_last} kept",
            "export every kept checkpoint (EMA weights) as a diffusers folder",
            f"draw samples of {config.samples.prompts.file}" if config.samples else "draw no samples",
        ),
        facts={
            "pairs" if train.stage == "distillation" else "images": f"{updates * train.global_batch:,}",
            "global batch": f"{train.global_batch:,} = {workers.count} workers x {train.micro_batch} x "
            f"{train.accumulation} accumulated",
            "learning rate": f"{train.optimizer.lr:g} after {train.optimizer.warmup_steps:,} warm-up updates, "
            f"{train.optimizer.kind}",
            **_learns(train),
            "workers": f"{where}, {train.precision}",
        },
    )


def _trained(train: TrainConfig) -> str:
    if train.lora is None:
        return train.trainable
    return f"adapters of rank {train.lora.rank} on {', '.join(train.lora.targets)} of {train.trainable}"


def _objective(objective: ObjectiveConfig) -> str:
    parts: list[str] = [objective.prediction or "as the start was trained"]
    if objective.min_snr_gamma is not None:
        parts.append(f"Min-SNR {objective.min_snr_gamma:g}")
    if objective.zero_terminal_snr:
        parts.append("no signal in the last step")
    return ", ".join(parts)


def _learns(train: TrainConfig) -> dict[str, str]:
    settings = train.distillation
    if settings is None:
        return {"objective": _objective(train.objective), "caption drop": f"{train.caption_drop:g}"}
    term = f"{settings.token_weight:g} x {settings.token_term}" if settings.token_weight else "none"
    return {
        "teacher": settings.teacher or "the base's own encoder",
        "token term": term,
        "held out": settings.held_out or "nothing is measured",
    }


def survey(config: TrainJobConfig, remote: bool = False) -> Survey:
    """Return memory, sizes, epochs and hours, estimated before anything runs, and what does not fit."""
    train = config.train
    look = remote or is_local(config.lake)
    shapes = shapes_of(train, config.lake, look)
    cost = estimate_student(train, shapes) if train.stage == "distillation" else estimate(train, shapes)

    def fits(lake: Lake) -> list[str]:
        versions, noising, missing = rehearse(train, lake.uri)
        learned = [epochs_line(train, versions)]
        if train.stage != "distillation":
            learned.append(
                f"learns      {noising.prediction}, noise {noising.schedule}"
                + (", no signal in the last step" if noising.zero_terminal_snr else "")
            )
        return [*learned, *(f"not looked at: {what}" for what in missing)]

    found = look_at(config.lake, remote, fits, lambda _: check(config))
    return Survey(lines=[*found.lines, *lines(train, config.estimate, cost, shapes)], problems=found.problems)


def check(config: TrainJobConfig) -> list[str]:
    """Return the notes on the sheets of samples, before the training.

    Raises:
        AltDiffusionError: the prompts cannot be read, or a package or a font is missing.
    """
    return [] if config.samples is None else sheet_lines(config.samples.prompts, config.samples.fonts)


def sample_pipeline_steps(config: TrainJobConfig, step: int) -> tuple[PipelineStep, ...]:
    """Return the pipeline steps that draw the samples of one checkpoint, as for any other set of generations."""
    samples = config.samples
    assert samples is not None
    generate = GenerateConfig(
        model=ModelConfig(run=config.train.run, step=step),
        prompts=samples.prompts,
        steps=samples.steps,
        guidance_scale=samples.guidance_scale,
        batch_rows=samples.batch_rows,
        rows_per_unit=samples.batch_rows,
        device=samples.device,
        dtype=samples.dtype,
        image_files=False,
    )
    name = f"{config.train.run}-samples"
    return generation_pipeline_steps(config.lake, f"{name}-prompts", name, generate, samples.workers or Workers(max=1))
