"""One training run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from altdiffusion.config import operational
from altdiffusion.training.config.compute import ComputeConfig
from altdiffusion.training.config.distillation import DistillationConfig
from altdiffusion.training.config.guards import GuardsConfig
from altdiffusion.training.config.lora import LoraConfig
from altdiffusion.training.config.objective import ObjectiveConfig
from altdiffusion.training.config.online import OnlineConfig
from altdiffusion.training.config.optimizer import OptimizerConfig
from altdiffusion.training.config.order import DatasetConfig, OrderConfig
from altdiffusion.training.config.start import StartConfig
from altdiffusion.training.config.workers import WorkersConfig

Stage = Literal["distillation", "alignment", "quality", "guidance"]
Trainable = Literal["kv", "attn2", "all"]
Precision = Literal["fp32", "bf16"]

_RUN = re.compile(r"[a-z0-9][a-z0-9._\-]{0,79}")
CONTINUED = re.compile(r"(?P<run>[a-z0-9][a-z0-9._\-]{0,79})@(?P<step>[0-9]{1,12})")
"""RUN@STEP."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run. The number of steps is operational: the state after step n does not depend on it, so a
    finished run is continued by asking for more."""

    run: str
    """Name of the run; with another config the same name is refused."""
    stage: Stage
    trainable: Trainable
    start: StartConfig = StartConfig()
    """Left out where the run continues another one."""
    continue_from: str | None = None
    """RUN@STEP: goes on from that checkpoint with its weights, averages, moments, position and key, as that run would
    have; only some settings may differ (training.run.continuing). Null begins at step 0 with what `start` names."""
    datasets: tuple[DatasetConfig, ...]
    seed: int = 0
    """Seed of all draws, together with the run's name and stage: two runs with one seed meet other rows, noise and
    timesteps."""
    key: str | None = None
    """Takes the place of the name: runs of one stage with one key and one seed meet the same rows, noise and timesteps,
    so that they can be compared."""
    steps: int = operational()
    """Updates in all."""
    global_batch: int
    """Samples per update."""
    micro_batch: int = operational()
    """Samples per forward pass of one worker."""
    precision: Precision = "fp32"
    caption_drop: float = 0.0
    """Probability that a caption is replaced by the empty one."""
    flip: float = 0.0
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
    max_bad_steps: int = operational(5)
    """Updates in a row with a loss or gradient that is not finite before the run stops; each of them is skipped."""
    checkpoint_every: int = operational(1000)
    checkpoint_async: bool = operational(True)
    """Writes checkpoints while the training goes on, which stops for the copy to host memory only."""
    keep_last: int = operational(3)
    keep_every: int = operational(0)
    """Checkpoints whose step is a multiple of this are kept for good; 0 keeps the last ones only."""
    log_every: int = operational(10)
    workers: WorkersConfig = operational(factory=WorkersConfig)
    compute: ComputeConfig = operational(factory=ComputeConfig)

    def __post_init__(self) -> None:
        if self.compute.sharding == "fsdp" and (self.lora is not None or self.optimizer.kind != "adamw"):
            raise ValueError("compute.sharding: fsdp goes with kind adamw and without lora; use ddp")
        if not _RUN.fullmatch(self.run):
            raise ValueError("run: is not a usable name; use lower-case letters, digits, '.', '_' and '-'")
        self._check_start()
        if not self.datasets:
            raise ValueError("datasets: none is given; name at least one dataset of latents")
        if len({weight.weight is None for weight in self.datasets}) > 1:
            raise ValueError("datasets: some have a weight and some have none; give all of them one, or none")
        for name in ("steps", "global_batch", "micro_batch", "max_bad_steps", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1; give a positive whole number")
        if self.keep_last < 2:
            raise ValueError("keep_last: must be at least 2; the one before is needed when the newest is damaged")
        if self.keep_every < 0 or self.keep_every % self.checkpoint_every:
            raise ValueError("keep_every: must be a multiple of checkpoint_every, or 0 to keep the last ones only")
        if self.key is not None and not _RUN.fullmatch(self.key):
            raise ValueError("key: is not a usable name; use lower-case letters, digits, '.', '_' and '-'")
        if not 0 <= self.caption_drop <= 1:
            raise ValueError("caption_drop: must be in [0, 1]; the published recipe has 0.1 in the guidance stage")
        if not 0 <= self.seed < 2**63:
            raise ValueError("seed: must be in [0, 2**63); use e.g. 0")
        self._check_stage()
        self._check_flip()
        if self.guards.spike is not None and self.guards.spike.steps > self.checkpoint_every:
            raise ValueError("guards.spike.steps: is more than checkpoint_every; a spike must end between checkpoints")
        for count in range(self.workers.min_count or self.workers.count, self.workers.count):
            if self.global_batch % (count * self.micro_batch):
                raise ValueError(
                    f"workers.min_count: lets the run go on with {count} workers, among which a batch of "
                    f"{self.global_batch} does not divide in micro-batches of {self.micro_batch}; "
                    f"take a global_batch or micro_batch that divides for every number from min_count to count, "
                    f"or a min_count of {self._least_count()}"
                )
        if self.global_batch % (self.workers.count * self.micro_batch):
            raise ValueError(
                f"global_batch: does not divide among {self.workers.count} workers with micro-batches of "
                f"{self.micro_batch}; use a multiple of {self.workers.count * self.micro_batch}, "
                f"like {self._nearest_batch()}, or change workers.count or micro_batch"
            )

    def _check_start(self) -> None:
        if self.continue_from is None:
            if self.start.base is None and self.start.checkpoint is None:
                raise ValueError(
                    "start.base: exactly one of base and checkpoint must be given; name a model folder or a run"
                )
            return
        match = CONTINUED.fullmatch(self.continue_from)
        if match is None:
            raise ValueError("continue_from: is not RUN@STEP; write e.g. m18-quality@120000")
        if match["run"] == self.run:
            raise ValueError(
                "continue_from: names the run itself; give this one another name, or leave continue_from out to go on "
                "with the same settings"
            )
        if self.key is not None:
            raise ValueError("key: a continued run keeps the key of the run that it continues; leave it out")
        if int(match["step"]) >= self.steps:
            raise ValueError(
                f"steps: are not more than the {int(match['step']):,} of the checkpoint; they are counted from the "
                "beginning of the run that is continued"
            )

    def _check_stage(self) -> None:
        if self.stage != "distillation":
            if self.distillation is not None:
                raise ValueError(
                    "distillation: is for the stage of that name; leave it out, or use stage: distillation"
                )
            return
        if self.distillation is None:
            raise ValueError("distillation: is missing; write `distillation: {}` for its defaults")
        if self.lora is not None:
            raise ValueError("lora: is for the UNet's stages; leave it out")
        if self.trainable != "all":
            raise ValueError("trainable: the student is trained whole; use all")
        if self.caption_drop:
            raise ValueError("caption_drop: is for the UNet's stages; the empty caption is a pair like any other here")
        objective = self.objective
        if objective.prediction == "v_prediction" or objective.min_snr_gamma or objective.zero_terminal_snr:
            raise ValueError("objective: is for the UNet's stages; leave it out")
        compute = self.compute
        if compute.gradient_checkpointing or compute.compile or compute.attention != "sdpa":
            raise ValueError("compute: attention, gradient_checkpointing and compile are for the UNet; leave them out")
        if self.workers.text_cache_mb:
            raise ValueError("workers.text_cache_mb: is for the UNet's stages; leave it 0")
        if self.continue_from is None and self.start.checkpoint is None and self.start.text_encoder is None:
            raise ValueError(
                "start.text_encoder: is missing; give the folder of the student, e.g. of xlm-roberta-large, "
                "or go on from a run of this stage by start.checkpoint"
            )

    def _check_flip(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ValueError("flip: must be in [0, 1]; 0.5 mirrors half of the samples")
        if self.stage == "distillation" and (self.flip or self.online is not None):
            raise ValueError("flip: the distillation stage sees no images; leave flip and online out")
        given = [dataset.mirrored is not None for dataset in self.datasets]
        if self.online is not None or not self.flip:
            if any(given):
                raise ValueError("datasets: mirrored latents are read with flip and without online; leave them out")
        elif not all(given):
            raise ValueError(
                "flip: a mirrored latent is not the latent of the mirrored image; make the encode job's "
                "`mirrored` datasets and name one for each dataset, or train on images (online)"
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
