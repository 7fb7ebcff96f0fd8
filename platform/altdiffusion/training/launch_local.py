"""Training in this process, without Ray."""

from __future__ import annotations

import torch

from altdiffusion.training.checkpoints.format import Checkpoint
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.faults.notice import PreemptionNotice, on_stop_signals
from altdiffusion.training.loop.loop import train_loop
from altdiffusion.training.reporting.reporter import LineReporter, Reporter
from altdiffusion.training.run.resolve import resolve


def run_local(
    config: TrainConfig,
    lake: str,
    *,
    reporter: Reporter | None = None,
    outbox_path: str | None = None,
    event_files: str | None = None,
    device: torch.device | str | None = None,
) -> Checkpoint:
    """Train with one process, whatever `config.workers.count` is; resume from the newest checkpoint.

    Args:
        config: what to train.
        lake: URI of the lake.
        reporter: receives what happens; by default it prints lines and appends metrics to `outbox_path`, and writes
            TensorBoard's event files below the folder `event_files`.
        device: by default a GPU where the workers have one, else the CPU.

    Returns:
        The checkpoint of the last step.

    Raises:
        Resumable: after SIGTERM or SIGINT, with a checkpoint of the step it came in.
    """
    run = resolve(config, lake)
    if device is None:
        device = "cuda" if config.workers.gpus else "cpu"
    notice = PreemptionNotice()
    with on_stop_signals(notice):
        return train_loop(
            run, reporter=reporter or LineReporter(config, outbox_path, event_files), device=device, notice=notice
        )
