"""Training jobs: one stage of the recipe per run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from altdiffusion.config import operational
from altdiffusion.constraints import Checked, Invalid, at_least
from altdiffusion.diffusion.folder import missing_model
from altdiffusion.diffusion.hub import absolute, is_hub_id
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.pipeline_step import PipelineStep
from altdiffusion.generation.settings import GenerateConfig, ModelConfig, PromptsConfig
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.files import exists, is_local
from altdiffusion.training.config import ObjectiveConfig, TrainConfig
from altdiffusion.training.data.validation_rows import check_held_out
from altdiffusion.training.estimate.cost import (
    Cost,
    EstimateConfig,
    Shapes,
    epochs_line,
    estimate,
    lines,
    shapes_of,
)
from altdiffusion.training.estimate.student_cost import estimate_student
from altdiffusion.training.rehearse import rehearse
from altdiffusion.training.reporting.event_files import require_tensorboard
from altdiffusion.training.run.continuing import continuation
from altdiffusion.training.run.record import run_named
from pipelines.common import JobConfig, Plan, Survey, Workers, device_conflicts, look_at
from pipelines.generate import generation_pipeline_steps, sheet_lines


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplesConfig(Checked):
    """Images drawn with a run's checkpoints, for MLflow's slider over steps."""

    prompts: PromptsConfig
    """Prompts; ids of the form <concept>-<language> give a grid of languages and concepts."""
    fonts: str
    """Local folder of fonts that together cover the scripts of all prompts."""
    steps: int = 20
    """Steps of the sampler per image."""
    guidance_scale: float = 3.0
    """Strength of classifier-free guidance; 1 switches it off."""
    batch_rows: int = 32
    """Images per pass of the UNet."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of the models."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type that the models compute in."""
    workers: Workers | None = None
    """Pool on the cluster that draws the images; without one, the job's own process draws them."""
    every: Annotated[int | None, at_least(1)] = None
    """Steps from one drawing to the next; null draws with every checkpoint that is kept. Step 0 and the last step are
    always drawn."""
    where: Literal["between", "end"] = "end"
    """`between`: by the workers while the training continues; `end`: when the training has ended."""

    def conflicts(self) -> Iterator[Invalid]:
        if self.where == "between" and self.workers is None:
            yield Invalid(
                "where",
                "between needs workers, since drawing in the job's own process would slow the training",
                "give samples.workers, or use end",
            )
        if self.device == "cuda" and (self.workers is None or self.workers.gpus == 0):
            yield Invalid("device", "needs workers that have GPUs", "give samples.workers.gpus")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainJobConfig(JobConfig):
    """`jobs/train.py`: one stage."""

    train: TrainConfig
    samples: SamplesConfig | None = operational(None)
    tensorboard: str | None = operational(None)
    """Folder on the job's machine for TensorBoard's event files, one folder per run; null writes none."""
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
        if samples is not None and samples.every is not None and samples.every % self.train.checkpoint_every:
            yield Invalid(
                "samples.every",
                f"is not a multiple of train.checkpoint_every ({self.train.checkpoint_every})",
                "samples are drawn with checkpoints",
            )
        if samples is not None and samples.where == "between" and self.execution.backend == "inline":
            yield Invalid("samples.where", "between needs the workers of Ray", "use end, or execution.backend ray")
        if samples is not None and samples.workers is not None:
            yield from device_conflicts(
                self, samples.workers, {"samples.device": samples.device}, section="samples.workers"
            )

    @property
    def run_name(self) -> str:
        return self.train.run

    def draws(self, step: int) -> bool:
        """Return whether samples of a step are drawn while the training continues."""
        if self.samples is None or self.samples.where == "end":
            return False
        return step % (self.samples.every or self.train.keep_every or self.train.checkpoint_every) == 0

    def draws_at_end(self, step: int) -> bool:
        """Return whether samples of a kept step must be there when the job has ended."""
        if self.samples is None:
            return False
        return self.samples.every is None or step % self.samples.every == 0 or step == self.train.steps


def prepare(config: TrainJobConfig, look: bool) -> TrainJobConfig:
    """Return the config of the run that is meant: with `continue_as`, the one that continues the named one."""
    return replace(config, train=continuation(config.train, absolute(config.lake))) if look else config


def plan(config: TrainJobConfig) -> Plan:
    """Return what the run will do, in readable figures."""
    train = config.train
    start = f"run {train.start.checkpoint}" if train.start.checkpoint else f"model {train.start.base}"
    if train.continue_as is not None:
        start = f"the newest checkpoint of {train.run}, with its moments, position and key, as run {train.continue_as}"
    elif train.continue_from is not None:
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
            *_validation(train),
            _samples(config),
        ),
        facts={
            "pairs" if train.stage == "distillation" else "images": f"{updates * train.global_batch:,}",
            "global batch": f"{train.global_batch:,} = {workers.count} workers x {train.micro_batch} x "
            f"{train.accumulation} accumulated",
            "learning rate": f"{train.optimizer.lr:g} after {train.optimizer.warmup_steps:,} warm-up updates, "
            f"{_fall(train)}{train.optimizer.kind}",
            **_learns(train),
            "workers": f"{where}, {train.precision}",
        },
    )


def _fall(train: TrainConfig) -> str:
    optimizer = train.optimizer
    if optimizer.lr_scheduler == "constant":
        return ""
    return f"{optimizer.lr_scheduler} to {optimizer.lr_end:g} at step {optimizer.decay_until or train.steps:,}, "


def _validation(train: TrainConfig) -> tuple[str, ...]:
    settings = train.validation
    if settings is None:
        return ()
    text = f"measure the loss on {settings.dataset} every {settings.every:,} updates"
    patience = settings.patience
    return (text if patience is None else f"{text}, and end after {patience} measurements without a lower one",)


def _samples(config: TrainJobConfig) -> str:
    samples = config.samples
    if samples is None:
        return "draw no samples"
    every = f"every {samples.every:,} steps" if samples.every else "with every kept checkpoint"
    when = "while training" if samples.where == "between" else "at the end"
    return f"draw samples of {samples.prompts.file} {every}, {when}"


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


def cost_of(train: TrainConfig, lake: str, look: bool) -> tuple[Cost, Shapes]:
    """Return the counts of one worker of a run, and the shapes that they are made from.

    Args:
        look: whether the lake may be read.
    """
    shapes = shapes_of(train, lake, look)
    return (estimate_student(train, shapes) if train.stage == "distillation" else estimate(train, shapes)), shapes


def survey(config: TrainJobConfig, remote: bool = False) -> Survey:
    """Return memory, sizes, epochs and hours, estimated before anything runs, and what does not fit."""
    train = config.train
    look = remote or is_local(config.lake)
    cost, shapes = cost_of(train, config.lake, look)

    def fits(lake: Lake) -> list[str]:
        versions, noising, missing = rehearse(train, lake.uri)
        learned = [epochs_line(train, versions)]
        if train.stage != "distillation":
            learned.append(
                f"learns      {noising.prediction}, noise {noising.schedule}"
                + (", no signal in the last step" if noising.zero_terminal_snr else "")
            )
        return [*learned, *(f"not looked at: {what}" for what in missing)]

    def models_there(lake: Lake) -> list[str]:
        teacher = train.distillation.teacher if train.distillation is not None else None
        for uri in filter(None, (train.start.base, train.start.text_encoder, teacher)):
            if is_hub_id(uri) or not (remote or is_local(uri)) or exists(uri):
                continue
            if uri != train.start.text_encoder or "/" in uri:
                raise missing_model(absolute(uri))
            if run_named(lake.uri, uri) is None:
                raise AltDiffusionError(
                    f"text encoder {uri}",
                    f"is neither a run of {lake.uri} nor a model folder",
                    "name a run of the distillation stage, or the folder of a text encoder",
                )
        return []

    found = look_at(config.lake, remote, models_there, fits, lambda _: check(config))
    return Survey(lines=[*found.lines, *lines(train, config.estimate, cost, shapes)], problems=found.problems)


def check(config: TrainJobConfig) -> list[str]:
    """Return the notes on the sheets of samples, before the training.

    Raises:
        AltDiffusionError: the prompts cannot be read, a package or a font is missing, or images that are to be held out
            are trained on.
    """
    if config.tensorboard is not None:
        require_tensorboard()
    validation, lake = config.train.validation, Lake(config.lake)
    if validation is not None:
        training = [lake.version(dataset.name) for dataset in config.train.datasets]
        check_held_out(lake.version(validation.dataset), training)
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
