"""The config of a training run: what decides the weights, and what decides only where and how fast."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from altdiffusion.config import operational
from altdiffusion.diffusion.objective import Prediction

Stage = Literal["alignment", "quality", "guidance"]
Trainable = Literal["kv", "attn2", "all"]
Precision = Literal["fp32", "bf16"]

_RUN = re.compile(r"[a-z0-9][a-z0-9._\-]{0,79}")


@dataclass(frozen=True, kw_only=True, slots=True)
class StartConfig:
    """Where the weights come from: a model folder, with or without another text encoder, or a run of ours.

    Paths are operational: what counts is the content, whose digest enters the run's fingerprint.
    """

    base: str | None = operational(None)
    """URI of a model folder (diffusers layout)."""
    text_encoder: str | None = operational(None)
    """URI of a folder with another text encoder and its tokenizer; null keeps the base's."""
    checkpoint: str | None = None
    """Name of a run in the same lake: starts from its newest verified checkpoint, and keeps its other models."""
    weights: Literal["ema", "raw"] = "ema"
    """Which of that checkpoint's weights."""

    def __post_init__(self) -> None:
        if (self.base is None) == (self.checkpoint is None):
            raise ValueError("base: exactly one of base and checkpoint must be given; name a model folder or a run")
        if self.checkpoint is not None and self.text_encoder is not None:
            raise ValueError(
                "text_encoder: a checkpoint brings its own text encoder; leave it out, or start from a base"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetConfig:
    """One dataset of latents in the training mixture."""

    name: str
    """`name` (its head), or `name@digest` to pin a version."""
    weight: float | None = None
    """Share of the samples, relative to the other weights. Null in all: one row after the other, exact epochs."""

    def __post_init__(self) -> None:
        if self.weight is not None and self.weight <= 0:
            raise ValueError("weight: must be positive; leave the dataset out instead of weighing it 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW with linear warm-up to a constant learning rate (the published recipe's values by default)."""

    lr: float = 1e-4
    warmup_steps: int = 10_000
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    ema_decay: float = 0.9999

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError("lr: must be positive; write e.g. 1e-4")
        if self.warmup_steps < 0:
            raise ValueError("warmup_steps: must not be negative; 0 means no warm-up")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas: must lie in [0, 1); write e.g. [0.9, 0.999]")
        if self.eps <= 0:
            raise ValueError("eps: must be positive; write e.g. 1e-8")
        if self.weight_decay < 0:
            raise ValueError("weight_decay: must not be negative; 0 means none")
        if not 0 <= self.ema_decay < 1:
            raise ValueError("ema_decay: must lie in [0, 1); 0 means no averaging")

    def lr_at(self, step: int) -> float:
        """Learning rate of the update from step `step` to `step + 1`: lr min(1, (step + 1) / warmup_steps)."""
        if self.warmup_steps == 0:
            return self.lr
        return self.lr * min(1.0, (step + 1) / self.warmup_steps)

    def ema_decay_at(self, update: int) -> float:
        """EMA decay of the update with that number, counted from 1: min(ema_decay, (1 + n) / (10 + n))."""
        return min(self.ema_decay, (1 + update) / (10 + update))


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """What is learned (see diffusion.objective); the published recipe's by default."""

    prediction: Prediction = "epsilon"
    """What the UNet answers: the noise, or the velocity v. A base that was trained on the other has to learn anew."""
    min_snr_gamma: float | None = None
    """Caps the weight of easy steps at this signal-to-noise ratio; the paper takes 5. Null weighs all alike."""
    zero_terminal_snr: bool = False
    """Leaves no signal in the last step, so that very dark and very light pictures can be drawn; needs v."""

    def __post_init__(self) -> None:
        if self.min_snr_gamma is not None and self.min_snr_gamma <= 0:
            raise ValueError("min_snr_gamma: must be positive; the paper takes 5, null switches it off")
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise ValueError(
                "zero_terminal_snr: the noise alone says nothing of a picture without signal; use "
                "prediction: v_prediction"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderConfig:
    """How the samples are shuffled (see training.order)."""

    chunk_rows: int = 1024
    window_chunks: int = 32

    def __post_init__(self) -> None:
        if self.chunk_rows < 1:
            raise ValueError("chunk_rows: must be positive; use the datasets' rows per row group")
        if self.window_chunks < 1:
            raise ValueError("window_chunks: must be positive; more mixes better and needs more memory")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkersConfig:
    """Where it runs; nothing of it changes the samples or what is drawn for them, only the rounding of sums."""

    count: int = operational(1)
    cpus: float = operational(1.0)
    """CPUs per worker; also its number of threads."""
    gpus: float = operational(0.0)
    """GPUs per worker: 0 or 1."""
    max_failures: int = operational(10)
    """Restarts before the job gives up; the same step failing three times ends it sooner."""
    prefetch: int = operational(2)
    """Batches read ahead."""
    cache_mb: int = operational(2048)
    """Memory of a worker for row groups that are read, in MiB."""
    text_cache_mb: int = operational(0)
    """Memory of a CPU worker for the vectors of captions, in MiB; 0 encodes them in every step. It pays where
    captions come many times."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError("count: must be at least 1; give the number of workers")
        if self.cpus <= 0:
            raise ValueError("cpus: must be positive; give the CPUs of one worker")
        if self.gpus not in (0, 1):
            raise ValueError("gpus: must be 0 or 1; use one worker for each GPU")
        if self.max_failures < 0:
            raise ValueError("max_failures: must not be negative; 0 means no restart")
        if self.prefetch < 1:
            raise ValueError("prefetch: must be at least 1; 2 is enough")
        if self.cache_mb < 1:
            raise ValueError("cache_mb: must be positive; a window of row groups should fit")
        if self.text_cache_mb < 0:
            raise ValueError("text_cache_mb: must not be negative; 0 means no cache")
        if self.text_cache_mb and self.gpus:
            raise ValueError("text_cache_mb: is for CPU workers only; leave it 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run. The number of steps is operational: the state after step n does not depend on it, so a
    finished run is continued by asking for more."""

    run: str
    """Name of the run; with another config the same name is refused."""
    stage: Stage
    trainable: Trainable
    start: StartConfig
    datasets: tuple[DatasetConfig, ...]
    seed: int = 0
    steps: int = operational()
    """Updates in all."""
    global_batch: int
    """Samples per update."""
    micro_batch: int = operational()
    """Samples per forward pass of one worker."""
    precision: Precision = "fp32"
    caption_drop: float = 0.0
    """Probability that a caption is replaced by the empty one."""
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    order: OrderConfig = OrderConfig()
    max_bad_steps: int = operational(5)
    """Updates in a row with a loss or gradient that is not finite before the run stops; each of them is skipped."""
    checkpoint_every: int = operational(1000)
    keep_last: int = operational(3)
    log_every: int = operational(10)
    workers: WorkersConfig = operational(factory=WorkersConfig)

    def __post_init__(self) -> None:
        if not _RUN.fullmatch(self.run):
            raise ValueError("run: is not a usable name; use lower-case letters, digits, '.', '_' and '-'")
        if not self.datasets:
            raise ValueError("datasets: none is given; name at least one dataset of latents")
        if len({weight.weight is None for weight in self.datasets}) > 1:
            raise ValueError("datasets: some have a weight and some have none; give all of them one, or none")
        for name in ("steps", "global_batch", "micro_batch", "max_bad_steps", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1; give a positive whole number")
        if self.keep_last < 2:
            raise ValueError("keep_last: must be at least 2; the one before is needed when the newest is damaged")
        if not 0 <= self.caption_drop <= 1:
            raise ValueError("caption_drop: must lie in [0, 1]; the published recipe has 0.1 in the guidance stage")
        if not 0 <= self.seed < 2**63:
            raise ValueError("seed: must lie in [0, 2**63); use e.g. 0")
        if self.global_batch % (self.workers.count * self.micro_batch):
            raise ValueError(
                f"global_batch: does not divide among {self.workers.count} workers with micro-batches of "
                f"{self.micro_batch}; use a multiple of {self.workers.count * self.micro_batch}, "
                f"like {self._nearest_batch()}, or change workers.count or micro_batch"
            )

    @property
    def accumulation(self) -> int:
        """Micro-batches that each worker adds up for one update."""
        return self.accumulation_of(self.workers.count)

    def accumulation_of(self, world: int) -> int:
        """The same for another number of workers; ValueError where the batch does not divide among them."""
        if self.global_batch % (world * self.micro_batch):
            raise ValueError(f"a batch of {self.global_batch} does not divide by {world} x {self.micro_batch}")
        return self.global_batch // (world * self.micro_batch)

    def _nearest_batch(self) -> int:
        unit = self.workers.count * self.micro_batch
        return max(1, round(self.global_batch / unit)) * unit
