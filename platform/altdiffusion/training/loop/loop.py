"""The training loop: plain torch and torch.distributed.

It runs in one process, under torchrun and in Ray's workers alike: the caller sets up the process group. All that
decides the result is a function of the config and the step, so a run that was killed and started again equals one that
was not, bit for bit, on the same hardware with the same number of workers and threads. Another number of workers
changes the rounding of sums and nothing else.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from altdiffusion.errors import Resumable
from altdiffusion.storage.dataset import Lake
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.checkpoints.format import Checkpoint
from altdiffusion.training.data.layout import LATENTS, Layout
from altdiffusion.training.data.loader import Loader, RowsOfPart, open_sources, prepare_sources
from altdiffusion.training.data.token_check import TokenColumn, check_token_ids
from altdiffusion.training.data.validation_rows import read_rows
from altdiffusion.training.faults.goodput import Journal
from altdiffusion.training.faults.notice import PreemptionNotice
from altdiffusion.training.faults.spikes import LossSpiked
from altdiffusion.training.faults.watch import Watch
from altdiffusion.training.loop.hooks import Hook, Step
from altdiffusion.training.loop.loss_checks import FiniteLossCheck, SpikeCheck
from altdiffusion.training.loop.meter import Meter
from altdiffusion.training.loop.preemption import PreemptionCheck
from altdiffusion.training.loop.progress_reports import ProgressReports
from altdiffusion.training.loop.rollback import go_back, windows_of
from altdiffusion.training.loop.saver import Saver
from altdiffusion.training.loop.stall import StallWatch
from altdiffusion.training.loop.validation import Validation
from altdiffusion.training.order.batches import Order
from altdiffusion.training.order.language_rows import language_rows
from altdiffusion.training.order.mirrored import mirrored_at
from altdiffusion.training.order.mixture import make_order, sources_of
from altdiffusion.training.order.skips import Windows, merged
from altdiffusion.training.ranks import agree, mean_over_ranks
from altdiffusion.training.reporting.reporter import Reporter
from altdiffusion.training.run.ended import has_ended
from altdiffusion.training.run.record import write_record
from altdiffusion.training.run.resolved import ResolvedRun
from altdiffusion.training.tasks import DiffusionTask, DistillationTask, Task
from altdiffusion.training.tasks.pair import load_pair
from altdiffusion.training.update.trainer import Counters, Trainer
from altdiffusion.training.weights import load_models, newest


def open_task(run: ResolvedRun, found: Checkpoint | None, device: torch.device) -> Task:
    """Return the networks of a run on a device, with the weights it starts from or those of its own checkpoint."""
    if run.config.stage == "distillation":
        return DistillationTask(run.config, load_pair(run, found), device, run.key)
    return DiffusionTask(run.config, load_models(run, found), device, run.key)


def open_data(run: ResolvedRun, layout: Layout = LATENTS) -> tuple[Order, list[RowsOfPart]]:
    """Return the order of a run, and the rows of its parts."""
    config, versions = run.config, run.versions()
    rows = open_sources(config, sources_of(config, versions), layout, run.mirrored_versions())
    return make_order(config, versions, run.key), rows


def train_loop(
    run: ResolvedRun,
    *,
    reporter: Reporter,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
    counters: Counters | None = None,
    notice: PreemptionNotice | None = None,
) -> Checkpoint:
    """Train from the newest verified checkpoint of the run, or from its start, to `config.steps`.

    All ranks call it; with `world` > 1 inside an initialised process group.

    Args:
        counters: kept up to date, so that the caller knows at which step it failed.
        notice: how the caller asks for a checkpoint, or for a checkpoint and the end.

    Returns:
        The checkpoint of the last step (the same on all ranks).

    Raises:
        AltDiffusionError: what a user can fix: wrong data, checkpoint or config, no space for the last checkpoint,
            or a loss that stays not finite.
        Resumable: notice to stop was given to some rank; its checkpoint is written.
    """
    config = run.config
    config.accumulation_of(world)  # raises where the batch does not divide among the workers that are there
    began = time.perf_counter()
    found, attempt = agree(lambda: (_find(run, reporter), uuid.uuid4().hex), rank, world)
    if found is not None and has_ended(config, found):
        return found
    process = _Process(run, reporter, torch.device(device), rank, world, attempt, notice or PreemptionNotice())
    counters = counters or Counters()
    skipped = windows_of(found)
    while True:
        try:
            return _train(process, found, skipped, counters, began)
        except LossSpiked as error:
            spike = error.with_traceback(None)  # whose frames hold the networks
        gc.collect()  # the networks of this pass are freed before those of the next are loaded
        began = time.perf_counter()
        found, skipped = agree(partial(go_back, run, reporter, skipped, spike), rank, world)


@dataclass(frozen=True)
class _Process:
    """What stays the same for a process of the run."""

    run: ResolvedRun
    reporter: Reporter
    device: torch.device
    rank: int
    world: int
    attempt: str
    notice: PreemptionNotice


def _train(
    process: _Process, found: Checkpoint | None, skipped: Windows, counters: Counters, began: float
) -> Checkpoint:
    """Train from one checkpoint to the last step: one pass, which a spike may end.

    Args:
        found: None is the start of the run.
        skipped: batches left out because the loss spiked there.
        began: reading of `time.perf_counter` when this pass began.
    """
    run, rank, world = process.run, process.rank, process.world
    config = run.config
    for field in fields(Counters):
        setattr(counters, field.name, field.default)
    trainer = Trainer(run, open_task(run, found, process.device), device=process.device, world=world)
    trainer.counters = counters
    if found is not None:
        trainer.load(found)
    agree(lambda: prepare_sources(sources_of(config, run.versions())), rank, world)
    order, rows = open_data(run, trainer.task.layout)
    agree(lambda: _check_tokens(run, trainer.task.tokens), rank, world)
    agree(lambda: write_record(run), rank, world)  # all is loaded and checked: from here the name is this run's
    loader = Loader(
        order,
        rows,
        rank=rank,
        world=world,
        start=counters.step,
        stop=config.steps,
        ahead=config.workers.prefetch,
        skips=merged([*config.guards.skip_batches, *skipped]),
        mirrored=partial(mirrored_at, run.seed, probability=config.flip) if config.flip else None,
    )
    saver = Saver(run, reporter=process.reporter, attempt=process.attempt, rank=rank, world=world, newest=found)
    try:
        hooks = _hooks(process, trainer, Meter(trainer, loader, order), saver, found, began)
        return _steps(trainer, loader, saver, hooks, skipped)
    finally:
        saver.close()
        loader.close()


def _hooks(
    process: _Process, trainer: Trainer, meter: Meter, saver: Saver, found: Checkpoint | None, began: float
) -> list[Hook]:
    """Return the hooks of a rank; those that communicate are at the same place on all ranks."""
    config, rank, world, step = process.run.config, process.rank, process.world, trainer.counters.step
    place = (process.run.lake, config.run)
    so_far_s = time.perf_counter() - began
    journal = Journal(*place, step=step, world=world, so_far_s=so_far_s) if rank == 0 else None
    watch = Watch(
        *place, rank=rank, world=world, timeout_s=config.workers.stall_timeout_s, step=step,
        report=partial(_report_last, process.reporter),
    )  # fmt: skip
    spike = config.guards.spike
    return [
        FiniteLossCheck(trainer, saver),
        *([SpikeCheck(spike, found, world)] if spike is not None else []),
        PreemptionCheck(process.notice, world),
        *_validation(process, trainer, found),
        ProgressReports(config.log_every, meter, saver, journal, process.reporter),
        StallWatch(watch),
    ]


def _validation(process: _Process, trainer: Trainer, found: Checkpoint | None) -> list[Hook]:
    settings, run = process.run.config.validation, process.run
    if settings is None:
        return []
    version = Lake(run.lake).version(settings.dataset)
    read = partial(read_rows, version, trainer.task.layout, settings.rows_per_language)
    if process.world > 1:
        agree(lambda: language_rows(version) and None, process.rank, process.world)  # its file is made by one rank
    own = found if found is not None and found.run == run.config.run else None
    return [Validation(settings, read(), trainer, process.reporter, rank=process.rank, found=own)]


def _steps(trainer: Trainer, loader: Loader, saver: Saver, hooks: Sequence[Hook], skipped: Windows) -> Checkpoint:
    """Take all steps that the loader has batches for; return the checkpoint of the last one."""
    config, counters = trainer.config, trainer.counters
    with contextlib.ExitStack() as around:
        for hook in hooks:
            around.enter_context(hook)
        for samples in loader:
            for hook in hooks:
                hook.on_step_start(counters.step)
            loss = trainer.update(samples)
            saver.poll()
            step = Step(number=counters.step, last=counters.step == config.steps, loss=loss, samples=samples)
            for hook in hooks:
                hook.on_step(step)
            if step.number % config.checkpoint_every == 0 or step.last or step.save or step.stop:
                state: dict[str, Any] = trainer.state(_finite(loss, trainer.world)) | {"skipped_batches": skipped}
                for hook in hooks:
                    state.update(hook.state())
                saver.save(trainer.tensors(), state, last=step.last or step.stop)
                for hook in hooks:
                    hook.on_checkpoint(step)
            if step.last or step.stop:
                for hook in hooks:
                    hook.on_end(step)
            if step.last:
                break
            if step.stop:
                raise Resumable(
                    f"run {config.run}",
                    f"was asked to stop and did so at step {step.number}, whose checkpoint is written",
                    "run the same command again to continue",
                )
    assert saver.newest is not None
    return saver.newest


def _report_last(reporter: Reporter, text: str) -> None:
    """Report a warning after which the process may end at once."""
    reporter.warning(text)
    reporter.flush()


def _check_tokens(run: ResolvedRun, tokens: Sequence[TokenColumn]) -> None:
    for version in run.versions():
        check_token_ids(version, tokens)


def _finite(loss: Tensor, world: int) -> float | None:
    """Return the loss of the last step over all ranks, where it is a number."""
    value = float(mean_over_ranks(loss.detach().clone(), world))
    return value if math.isfinite(value) else None


def _find(run: ResolvedRun, reporter: Reporter) -> Checkpoint | None:
    found = newest(run, reporter.warning)
    own = found is not None and found.run == run.config.run
    checkpoints.sweep(run.lake, run.config.run, found.step if found is not None and own else 0)
    return found
