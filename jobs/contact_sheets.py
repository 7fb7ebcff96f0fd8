"""Contact sheets as images by step in MLflow: one per language at a readable size, and one of all languages."""

from __future__ import annotations

import tempfile
from pathlib import Path

from altdiffusion.execution import cluster
from altdiffusion.execution.pipeline_step import run_pipeline_step
from altdiffusion.generation.sheet import write_sheet
from altdiffusion.generation.sheet_arrangement import Selection
from altdiffusion.generation.typeface import Typefaces
from altdiffusion.languages import in_order
from altdiffusion.storage.dataset import Version
from altdiffusion.training.exports.export import export_checkpoint
from jobs.session import Session
from pipelines.train import TrainJobConfig, sample_pipeline_steps

ALL = "samples/_all"
_CELL, _COLUMNS = 176, 4
"""Side of an image and images per row of a language's sheet: MLflow shows it about 600 pixels wide."""


def log_samples(config: TrainJobConfig, session: Session, step: int) -> None:
    """Draw the samples of one checkpoint, and log their sheets at its step."""
    assert config.samples is not None
    backend = "inline" if config.samples.workers is None else config.execution.backend
    for pipeline_step in sample_pipeline_steps(config, step):
        *_, version = run_pipeline_step(session.lake, pipeline_step, backend=backend)
    log_sheets(session, version, config.samples.fonts, title=f"{config.train.run}, step {step:,}", step=step)


def export_for_samples(config: TrainJobConfig, session: Session, step: int) -> None:
    """Export a checkpoint on a worker of the cluster, since the driver's machine draws and loads nothing."""
    if step:  # step 0 is exported when the training starts
        cluster.call(export_checkpoint_of, session.lake.uri, config.train.run, step)


def export_checkpoint_of(lake: str, run: str, step: int) -> str:
    """Export one step, and return the folder."""
    return export_checkpoint(lake, run, step=step)


def log_sheets(session: Session, version: Version, fonts: str, *, title: str, step: int) -> None:
    """Log the sheets of a set of generations; the one of all languages comes last and marks the step as complete."""
    faces = Typefaces(fonts)
    languages = in_order({code for code in version.read(["language"])["language"].to_pylist() if code})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sheet.png"
        for code in languages if len(languages) > 1 else ():
            chosen = Selection(languages=(code,), columns=_COLUMNS)
            write_sheet(version, file, faces, cell=_CELL, title=f"{title}, {code}", zoom=1, selection=chosen)
            session.run.image(f"samples/{code}", str(file), step=step)
        write_sheet(version, file, faces, title=title, zoom=1)
        session.run.image(ALL, str(file), step=step)
