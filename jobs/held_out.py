"""Retrieval figures of a distillation's checkpoints, measured on held-out pairs."""

from __future__ import annotations

from collections.abc import Sequence

from altdiffusion.execution import cluster
from altdiffusion.training.checkpoints.format import Checkpoint
from altdiffusion.training.retrieval import retrieval
from altdiffusion.training.run.resolved import ResolvedRun
from pipelines.train import TrainJobConfig


def measure_retrieval(
    config: TrainJobConfig, resolved: ResolvedRun, kept: Sequence[Checkpoint]
) -> list[dict[str, float]]:
    """Return the retrieval figures of each checkpoint of a distillation; none for a run without held-out pairs."""
    settings = resolved.config.distillation
    if settings is None or settings.held_out is None:
        return [{} for _ in kept]
    if config.execution.backend == "ray":  # the driver's machine may have no GPU, so this runs where the training ran
        workers = config.train.workers
        need = {"num_cpus": workers.cpus, "num_gpus": workers.gpus}
        found = cluster.call(retrieval, resolved, kept, settings.held_out, **need)
    else:
        found = retrieval(resolved, kept, settings.held_out)
    for checkpoint, scores in zip(kept, found, strict=True):
        figures = ", ".join(f"{name.removeprefix('retrieval/')} {score:.1%}" for name, score in scores.items())
        print(f"[retrieval] step {checkpoint.step}: {figures}", flush=True)
    return found
