"""Contact sheets of a checkpoint's samples, as images by step in MLflow."""

from __future__ import annotations

import tempfile
from pathlib import Path

from altdiffusion.execution.pipeline_step import run_pipeline_step
from altdiffusion.generation.sheet import write_sheet
from jobs.session import Session
from pipelines.train import TrainJobConfig, sample_pipeline_steps


def log_samples(config: TrainJobConfig, session: Session, step: int) -> None:
    """Draw the samples of one checkpoint, and log their sheet at its step."""
    assert config.samples is not None
    backend = "inline" if config.samples.workers is None else config.execution.backend
    for pipeline_step in sample_pipeline_steps(config, step):
        *_, version = run_pipeline_step(session.lake, pipeline_step, backend=backend)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sheet.png"
        write_sheet(version, file, config.samples.fonts, title=f"{config.train.run}, step {step:,}", zoom=1)
        session.run.image("samples/_all", str(file), step=step)
