"""One training run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from altdiffusion.config import operational
from altdiffusion.constraints import Checked, Invalid, at_least, between, from_below, matching, not_empty
from altdiffusion.training.config.compute import ComputeConfig
from altdiffusion.training.config.distillation import DistillationConfig
from altdiffusion.training.config.guards import GuardsConfig
from altdiffusion.training.config.lora import LoraConfig
from altdiffusion.training.config.objective import ObjectiveConfig
from altdiffusion.training.config.online import OnlineConfig
from altdiffusion.training.config.optimizer import OptimizerConfig
from altdiffusion.training.config.order import DatasetConfig, OrderConfig
from altdiffusion.training.config.start import StartConfig
from altdiffusion.training.config.validation import ValidationConfig
from altdiffusion.training.config.workers import WorkersConfig

Stage = Literal["distillation", "alignment", "quality", "guidance"]
Trainable = Literal["kv", "attn2", "all"]
Precision = Literal["fp32", "bf16"]

_NAME = matching(
    r"[a-z0-9][a-z0-9._\-]{0,79}", "is not a usable name", "use lower-case letters, digits, '.', '_' and '-'"
)
CONTINUED = re.compile(r"(?P<run>[a-z0-9][a-z0-9._\-]{0,79})@(?P<step>[0-9]{1,12})")
"""RUN@STEP."""
_COUNT = at_least(1, "give a positive whole number")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(Checked):
    """One training run. The number of steps is operational: the state after step n does not depend on it, so a
    finished run is continued by asking for more."""

    run: Annotated[str, _NAME]
    """Name of the run; with another config the same name is refused."""
    stage: Stage
    """Stage of the recipe, which decides what is trained against what."""
    trainable: Trainable
    """Part of the UNet that is trained: K and V of the cross-attention, all of the cross-attention, or all."""
    start: StartConfig = StartConfig()
    """Left out where the run continues another one."""
    continue_from: Annotated[str | None, matching(CONTINUED, "is not RUN@STEP", "write e.g. m18-quality@120000")] = None
    """RUN@STEP: continues that checkpoint with its weights, averages, moments, position and key, as that run would
    have; only some settings may differ (training.run.continuing). Null begins at step 0 with what `start` names."""
    continue_as: Annotated[str | None, _NAME] = operational(None)
    """Name of a new run that continues the newest checkpoint of `run`, as with continue_from, with the settings of this
    config: the one override with which a run goes on with another learning rate. Null: this is `run` itself."""
    datasets: Annotated[tuple[DatasetConfig, ...], not_empty("name at least one dataset of latents")]
    seed: Annotated[int, from_below(0, 2**63, "use e.g. 0")] = 0
    """Seed of all draws, together with the run's name and stage: two runs with one seed get other rows, noise and
    timesteps."""
    key: Annotated[str | None, _NAME] = None
    """Takes the place of the name: runs of one stage with one key and one seed get the same rows, noise and timesteps,
    so that they can be compared."""
    steps: Annotated[int, _COUNT] = operational()
    """Total number of updates."""
    global_batch: Annotated[int, _COUNT]
    """Samples per update."""
    micro_batch: Annotated[int, _COUNT] = operational()
    """Samples per forward pass of one worker."""
    precision: Precision = "fp32"
    """Type that the networks compute in; weights, moments and averages are always fp32."""
    caption_drop: Annotated[float, between(0, 1, "the published recipe has 0.1 in the guidance stage")] = 0.0
    """Probability that a caption is replaced by the empty one."""
    flip: Annotated[float, between(0, 1, "0.5 mirrors half of the samples")] = 0.0
    """Probability that a sample is mirrored left to right. Training on latents needs each dataset's `mirrored` one."""
    online: OnlineConfig | None = None
    """Trains on images, with the VAE in the loop. Null trains on latents."""
    objective: ObjectiveConfig = ObjectiveConfig()
    distillation: DistillationConfig | None = None
    """For the distillation stage only."""
    lora: LoraConfig | None = None
    """Trains low-rank adapters instead of the weights that `trainable` names; null trains those."""
    optimizer: OptimizerConfig = OptimizerConfig()
    order: OrderConfig = OrderConfig()
    guards: GuardsConfig = GuardsConfig()
    max_bad_steps: Annotated[int, _COUNT] = operational(5)
    """Updates in a row with a loss or gradient that is not finite before the run stops; each of them is skipped."""
    checkpoint_every: Annotated[int, _COUNT] = operational(1000)
    """Steps from one checkpoint to the next."""
    checkpoint_async: bool = operational(True)
    """Writes checkpoints while the training continues; it stops only for the copy to host memory."""
    keep_last: Annotated[int, at_least(2, "the one before is needed when the newest is damaged")] = operational(3)
    """Newest checkpoints that are kept."""
    keep_every: Annotated[int, at_least(0, "0 keeps the last ones only")] = operational(0)
    """Checkpoints whose step is a multiple of this are kept permanently; 0 keeps the last ones only."""
    validation: ValidationConfig | None = operational(None)
    """Measures the loss on held-out rows; null measures nothing."""
    log_every: Annotated[int, _COUNT] = operational(10)
    """Steps from one line and point of metrics to the next."""
    workers: WorkersConfig = operational(factory=WorkersConfig)
    compute: ComputeConfig = operational(factory=ComputeConfig)

    def conflicts(self) -> Iterator[Invalid]:
        if self.compute.sharding == "fsdp" and (self.lora is not None or self.optimizer.kind != "adamw"):
            yield Invalid("compute.sharding", "goes with kind adamw and without lora", "use ddp")
        yield from self._start_conflicts()
        if len({dataset.weight is None for dataset in self.datasets}) > 1:
            yield Invalid("datasets", "some have a weight and some have none", "give all of them one, or none")
        if self.keep_every % self.checkpoint_every:
            yield Invalid("keep_every", "must be a multiple of checkpoint_every", "0 keeps the last ones only")
        yield from self._stage_conflicts()
        yield from self._flip_conflicts()
        if self.guards.spike is not None and self.guards.spike.steps > self.checkpoint_every:
            yield Invalid("guards.spike.steps", "is more than checkpoint_every", "a spike must end between checkpoints")
        yield from self._batch_conflicts()
        yield from self._validation_conflicts()

    def _start_conflicts(self) -> Iterator[Invalid]:
        if self.start.lora is not None and self.lora is None:
            yield Invalid(
                "start.lora", "is given, and the run trains no adapters", "give lora as well, or leave it out"
            )
        if self.continue_as == self.run:
            yield Invalid("continue_as", "is the name of the run that it would continue", "give another name")
        if self.continue_from is None:
            if self.start.base is None and self.start.checkpoint is None:
                yield Invalid(
                    "start.base", "exactly one of base and checkpoint must be given", "name a model folder or a run"
                )
            return
        run, _, text = self.continue_from.partition("@")
        if run == self.run:
            yield Invalid(
                "continue_from",
                "names the run itself",
                "give this one another name, or leave continue_from out to continue with the same settings",
            )
        if self.key is not None:
            yield Invalid("key", "is given, and a continued run keeps the key of the run it continues", "leave it out")
        if int(text) >= self.steps:
            yield Invalid(
                "steps",
                f"is not more than the {int(text):,} steps of the checkpoint",
                "they are counted from the beginning of the run that is continued",
            )

    def _stage_conflicts(self) -> Iterator[Invalid]:
        if self.stage != "distillation":
            if self.distillation is not None:
                yield Invalid(
                    "distillation", "is for the stage of that name", "leave it out, or use stage: distillation"
                )
            return
        if self.distillation is None:
            yield Invalid("distillation", "is missing", "write `distillation: {}` for its defaults")
        unet_only = "is for the UNet's stages"
        if self.lora is not None:
            yield Invalid("lora", unet_only, "leave it out")
        if self.trainable != "all":
            yield Invalid("trainable", "does not fit: the student is trained whole", "use all")
        if self.caption_drop:
            yield Invalid("caption_drop", unet_only, "leave it 0: here the empty caption is a pair like any other")
        objective = self.objective
        if objective.prediction == "v_prediction" or objective.min_snr_gamma or objective.zero_terminal_snr:
            yield Invalid("objective", unet_only, "leave it out")
        compute = self.compute
        if compute.gradient_checkpointing or compute.compile or compute.attention != "sdpa":
            yield Invalid("compute", "sets attention, gradient_checkpointing or compile for the UNet", "leave them out")
        if self.workers.text_cache_mb:
            yield Invalid("workers.text_cache_mb", unet_only, "leave it 0")
        if self.continue_from is None and self.start.checkpoint is None and self.start.text_encoder is None:
            yield Invalid(
                "start.text_encoder",
                "is missing",
                "give the folder of the student, e.g. of xlm-roberta-large, or continue from a run of this stage by "
                "start.checkpoint",
            )

    def _flip_conflicts(self) -> Iterator[Invalid]:
        if self.stage == "distillation" and (self.flip or self.online is not None):
            yield Invalid("flip", "does not fit: the distillation stage sees no images", "leave flip and online out")
        given = [dataset.mirrored is not None for dataset in self.datasets]
        if self.online is not None or not self.flip:
            if any(given):
                yield Invalid(
                    "datasets", "name mirrored latents, which only flip without online reads", "leave them out"
                )
        elif not all(given):
            yield Invalid(
                "flip",
                "needs mirrored latents: a mirrored latent is not the latent of the mirrored image",
                "make the encode job's `mirrored` datasets and name one for each dataset, or train on images (online)",
            )

    def _validation_conflicts(self) -> Iterator[Invalid]:
        settings = self.validation
        if settings is None:
            return
        if self.stage == "distillation":
            yield Invalid("validation", "is for the UNet's stages", "use distillation.held_out")
        if self.online is not None:
            yield Invalid(
                "validation", "reads latents, and this run trains on images", "train on latents, or leave it out"
            )
        if settings.patience is None:
            return
        if settings.every % self.checkpoint_every:
            yield Invalid(
                "validation.every",
                f"is not a multiple of checkpoint_every ({self.checkpoint_every}), so that the best step has no "
                "checkpoint",
                f"use e.g. {-(-settings.every // self.checkpoint_every) * self.checkpoint_every}",
            )
        between = settings.patience * settings.every // self.checkpoint_every
        if self.keep_last <= between and (not self.keep_every or settings.every % self.keep_every):
            yield Invalid(
                "keep_last",
                f"removes the best step's checkpoint before validation.patience ({settings.patience}) ends the run",
                f"keep the last {between + 1}",
            )

    def _batch_conflicts(self) -> Iterator[Invalid]:
        workers, micro = self.workers, self.micro_batch
        for count in range(workers.min_count or workers.count, workers.count):
            if self.global_batch % (count * micro):
                yield Invalid(
                    "workers.min_count",
                    f"lets the run continue with {count} workers, among which a batch of {self.global_batch} does not "
                    f"divide in micro-batches of {micro}",
                    "take a global_batch or micro_batch that divides for every number from min_count to count, "
                    f"or a min_count of {self._least_count()}",
                )
        if self.global_batch % (workers.count * micro):
            yield Invalid(
                "global_batch",
                f"does not divide among {workers.count} workers with micro-batches of {micro}",
                f"use a multiple of {workers.count * micro}, like {self._nearest_batch()}, or change workers.count "
                "or micro_batch",
            )

    @property
    def first_step(self) -> int:
        """Return the steps done when the run begins: those of the checkpoint that it continues, or 0."""
        return 0 if self.continue_from is None else int(self.continue_from.partition("@")[2])

    @property
    def accumulation(self) -> int:
        """Return the number of micro-batches that each worker accumulates for one update."""
        return self.accumulation_of(self.workers.count)

    def accumulation_of(self, world: int) -> int:
        """Return the same for another number of workers.

        Raises:
            ValueError: the batch does not divide among them.
        """
        if self.global_batch % (world * self.micro_batch):
            raise ValueError(f"a batch of {self.global_batch} does not divide by {world} x {self.micro_batch}")
        return self.global_batch // (world * self.micro_batch)

    def _least_count(self) -> int:
        """Return the smallest min_count that is possible with this batch."""
        least = self.workers.count
        while least > 1 and self.global_batch % ((least - 1) * self.micro_batch) == 0:
            least -= 1
        return least

    def _nearest_batch(self) -> int:
        unit = self.workers.count * self.micro_batch
        return max(1, round(self.global_batch / unit)) * unit
