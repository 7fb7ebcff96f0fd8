"""Training jobs: one stage of the recipe a run."""

from __future__ import annotations

from dataclasses import dataclass

from altdiffusion.training.config import TrainConfig

from pipelines.common import JobConfig, Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainJobConfig(JobConfig):
    """`jobs/train.py`: one stage."""

    train: TrainConfig

    @property
    def run_name(self) -> str:
        return self.train.run


def plan(config: TrainJobConfig) -> Plan:
    """What the run will do, in a person's numbers."""
    train = config.train
    start = f"run {train.start.checkpoint}" if train.start.checkpoint else f"model {train.start.base}"
    if train.start.text_encoder:
        start += f" with text encoder {train.start.text_encoder}"
    workers = train.workers
    where = f"{workers.count} x {workers.gpus:g} GPU" if workers.gpus else f"{workers.count} x {workers.cpus:g} CPU"
    return Plan(
        title=f"train stage {train.stage}, run {train.run}",
        steps=(
            f"start from {start}",
            f"{train.steps:,} updates of {train.trainable} on {', '.join(d.name for d in train.datasets)}",
            f"a checkpoint every {train.checkpoint_every:,} updates, the last {train.keep_last} kept",
            "export the newest checkpoint (EMA weights) as a diffusers folder",
        ),
        facts={
            "images": f"{train.steps * train.global_batch:,}",
            "global batch": f"{train.global_batch:,} = {workers.count} workers x {train.micro_batch} x "
            f"{train.accumulation} accumulated",
            "learning rate": f"{train.optimizer.lr:g} after {train.optimizer.warmup_steps:,} warm-up updates",
            "caption drop": f"{train.caption_drop:g}",
            "workers": f"{where}, {train.precision}",
        },
    )
