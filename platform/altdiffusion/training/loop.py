"""The training loop: plain torch and torch.distributed.

It runs in one process, under torchrun or in Ray's workers alike: whoever starts it sets up the process group. All
that decides the result is a function of the config and the step, so a run that was killed and started again equals
one that was not, bit for bit, on the same hardware with the same number of workers and threads. Another number of
workers changes the rounding of sums and nothing else.
"""

from __future__ import annotations

import math
import uuid

import torch
from torch import Tensor

from altdiffusion.errors import AltDiffusionError
from altdiffusion.training import checkpoint as checkpoints
from altdiffusion.training.checkpoint import Checkpoint
from altdiffusion.training.data import Loader, RowGroups, open_sources, prepare_sources
from altdiffusion.training.layout import LATENTS, Layout
from altdiffusion.training.meter import Meter
from altdiffusion.training.mixture import make_order, sources_of
from altdiffusion.training.order import Order
from altdiffusion.training.ranks import agree, mean_over_ranks
from altdiffusion.training.report import Reporter
from altdiffusion.training.resolve import ResolvedRun, check_checkpoint, load_models
from altdiffusion.training.saver import Saver
from altdiffusion.training.tasks import DiffusionTask, DistillationTask, Task
from altdiffusion.training.tasks.pair import load_pair
from altdiffusion.training.trainer import Counters, Trainer


def open_task(run: ResolvedRun, found: Checkpoint | None, device: torch.device) -> Task:
    """The networks of a run on the device, with the weights it starts from or those of its own checkpoint."""
    if run.config.stage == "distillation":
        return DistillationTask(run.config, load_pair(run, found), device)
    return DiffusionTask(run.config, load_models(run, found), device)


def open_data(run: ResolvedRun, layout: Layout = LATENTS) -> tuple[Order, list[RowGroups]]:
    """The order of a run, and the rows of its parts."""
    config, versions = run.config, run.versions()
    return make_order(config, versions), open_sources(config, sources_of(config, versions), layout)


def train_loop(
    run: ResolvedRun,
    *,
    reporter: Reporter,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
    counters: Counters | None = None,
) -> Checkpoint:
    """Trains from the newest verified checkpoint of the run, or from its start, to `config.steps`.

    All ranks call it; with `world` > 1 inside an initialised process group. `counters`, where given, are kept up to
    date, so that the caller knows at which step it failed.

    Returns:
        The checkpoint of the last step (the same on all ranks).

    Raises:
        AltDiffusionError: what a user can mend: wrong data, checkpoint or config, no space for the last checkpoint,
            or a loss that stays not finite.
    """
    config = run.config
    config.accumulation_of(world)  # raises where the batch does not divide among the workers that are there
    found, attempt = agree(lambda: (_find(run, reporter), uuid.uuid4().hex), rank, world)
    if found is not None and found.step >= config.steps:
        return found
    on = torch.device(device)
    trainer = Trainer(run, open_task(run, found, on), device=on, world=world)
    if counters is not None:
        trainer.counters = counters
    if found is not None:
        trainer.load(found)
    agree(lambda: prepare_sources(sources_of(config, run.versions())), rank, world)
    order, rows = open_data(run, trainer.task.layout)
    loader = Loader(
        order,
        rows,
        rank=rank,
        world=world,
        start=trainer.counters.step,
        stop=config.steps,
        ahead=config.workers.prefetch,
    )
    saver = Saver(run, reporter=reporter, attempt=attempt, rank=rank, world=world, newest=found)
    try:
        return _steps(run, trainer, loader, order, reporter, saver, rank)
    finally:
        saver.close()
        loader.close()


def _steps(
    run: ResolvedRun, trainer: Trainer, loader: Loader, order: Order, reporter: Reporter, saver: Saver, rank: int
) -> Checkpoint:
    config, counters = run.config, trainer.counters
    window = Meter(trainer, loader)
    for samples in loader:
        loss = trainer.update(samples)
        window.add(loss, samples)
        saver.poll()
        if counters.bad_in_a_row >= config.max_bad_steps:
            raise AltDiffusionError(
                f"run {config.run}, step {counters.step}",
                f"loss or gradient was not finite in {counters.bad_in_a_row} steps in a row",
                "lower optimizer.lr, use precision fp32 or look at the data of these steps; "
                f"the last checkpoint is of step {saver.newest.step if saver.newest else 0}",
            )
        last = counters.step == config.steps
        if counters.step % config.log_every == 0 or last:
            progress = window.close(order)
            if rank == 0:
                reporter.progress(progress)
        if counters.step % config.checkpoint_every == 0 or last:
            saver.save(trainer.tensors(), trainer.state(_finite(loss, trainer.world)), last=last)
    assert saver.newest is not None
    return saver.newest


def _finite(loss: Tensor, world: int) -> float | None:
    """The loss of the last step over all ranks, where it is a number."""
    value = float(mean_over_ranks(loss.detach().clone(), world))
    return value if math.isfinite(value) else None


def _find(run: ResolvedRun, reporter: Reporter) -> Checkpoint | None:
    found = checkpoints.latest_verified(run.lake, run.config.run, reporter.warning)
    if found is not None:
        check_checkpoint(run, found)
    checkpoints.sweep(run.lake, run.config.run, found.step if found is not None else 0)
    return found
