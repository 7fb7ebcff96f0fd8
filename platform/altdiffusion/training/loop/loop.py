"""The training loop: plain torch and torch.distributed.

It runs in one process, under torchrun or in Ray's workers alike: whoever starts it sets up the process group. All
that decides the result is a function of the config and the step, so a run that was killed and started again equals
one that was not, bit for bit, on the same hardware with the same number of workers and threads. Another number of
workers changes the rounding of sums and nothing else.
"""

from __future__ import annotations

import gc
import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from altdiffusion.errors import AltDiffusionError, Resumable
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.checkpoints.format import Checkpoint
from altdiffusion.training.data.layout import LATENTS, Layout
from altdiffusion.training.data.loader import Loader, RowGroups, Twins, open_sources, prepare_sources
from altdiffusion.training.data.token_check import TokenColumn, check_token_ids
from altdiffusion.training.faults.goodput import Journal
from altdiffusion.training.faults.notice import NONE, SAVE, STOP, Agreement, Notice
from altdiffusion.training.faults.spikes import LossSpiked, SpikeGuard
from altdiffusion.training.faults.watch import Watch
from altdiffusion.training.loop.meter import Meter
from altdiffusion.training.loop.saver import Saver
from altdiffusion.training.order.batches import Order
from altdiffusion.training.order.mirrored import mirrored_at
from altdiffusion.training.order.mixture import make_order, sources_of
from altdiffusion.training.order.skips import Windows, merged, step_of
from altdiffusion.training.ranks import agree, mean_over_ranks
from altdiffusion.training.reporting.report import Reporter
from altdiffusion.training.run.record import write_record
from altdiffusion.training.run.resolve import ResolvedRun
from altdiffusion.training.tasks import DiffusionTask, DistillationTask, Task
from altdiffusion.training.tasks.pair import load_pair
from altdiffusion.training.update.trainer import Counters, Trainer
from altdiffusion.training.weights import load_models, newest


def open_task(run: ResolvedRun, found: Checkpoint | None, device: torch.device) -> Task:
    """The networks of a run on the device, with the weights it starts from or those of its own checkpoint."""
    if run.config.stage == "distillation":
        return DistillationTask(run.config, load_pair(run, found), device, run.key)
    return DiffusionTask(run.config, load_models(run, found), device, run.key)


def open_data(run: ResolvedRun, layout: Layout = LATENTS) -> tuple[Order, list[RowGroups | Twins]]:
    """The order of a run, and the rows of its parts."""
    config, versions = run.config, run.versions()
    rows = open_sources(config, sources_of(config, versions), layout, run.twins())
    return make_order(config, versions, run.key), rows


def train_loop(
    run: ResolvedRun,
    *,
    reporter: Reporter,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
    counters: Counters | None = None,
    notice: Notice | None = None,
) -> Checkpoint:
    """Trains from the newest verified checkpoint of the run, or from its start, to `config.steps`.

    All ranks call it; with `world` > 1 inside an initialised process group. `counters`, where given, are kept up to
    date, so that the caller knows at which step it failed. `notice` is how the caller asks for a checkpoint, or for a
    checkpoint and the end.

    Returns:
        The checkpoint of the last step (the same on all ranks).

    Raises:
        AltDiffusionError: what a user can mend: wrong data, checkpoint or config, no space for the last checkpoint,
            or a loss that stays not finite.
        Resumable: notice to stop was given to some rank; the checkpoint is there.
    """
    config = run.config
    config.accumulation_of(world)  # raises where the batch does not divide among the workers that are there
    began = time.time()
    found, attempt = agree(lambda: (_find(run, reporter), uuid.uuid4().hex), rank, world)
    if found is not None and found.step >= config.steps:
        return found
    place = _Place(run, reporter, torch.device(device), rank, world, attempt, notice or Notice())
    counters = counters or Counters()
    skipped = windows_of(found)
    while True:
        try:
            return _train(place, found, skipped, counters, began)
        except LossSpiked as error:
            spike = (error.first, error.after, str(error))
        gc.collect()  # the networks of this turn go before those of the next come
        began = time.time()
        found, skipped = agree(partial(_go_back, run, reporter, skipped, *spike), rank, world)


@dataclass(frozen=True)
class _Place:
    """What stays the same for a process of the run."""

    run: ResolvedRun
    reporter: Reporter
    device: torch.device
    rank: int
    world: int
    attempt: str
    notice: Notice


def _train(place: _Place, found: Checkpoint | None, skipped: Windows, counters: Counters, began: float) -> Checkpoint:
    """Trains from one checkpoint to the last step.

    Args:
        found: None is the start of the run.
        skipped: batches left out because the loss spiked there.
        began: seconds since 1970 when this turn began.
    """
    run, rank, world = place.run, place.rank, place.world
    config = run.config
    for field in fields(Counters):
        setattr(counters, field.name, field.default)
    trainer = Trainer(run, open_task(run, found, place.device), device=place.device, world=world)
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
    saver = Saver(run, reporter=place.reporter, attempt=place.attempt, rank=rank, world=world, newest=found)
    try:
        return _steps(place, trainer, loader, order, saver, found, skipped, began)
    finally:
        saver.close()
        loader.close()


def _steps(
    place: _Place,
    trainer: Trainer,
    loader: Loader,
    order: Order,
    saver: Saver,
    found: Checkpoint | None,
    skipped: Windows,
    began: float,
) -> Checkpoint:
    run, rank, world = place.run, place.rank, place.world
    config, counters = run.config, trainer.counters
    guard = SpikeGuard(config.guards.spike) if config.guards.spike is not None else None
    judged = found.state().get("guard") if found is not None else None
    if guard is not None and judged is not None:  # a run may continue one that had no guard
        guard.load(judged)
    agreement, meter = Agreement(world), Meter(trainer, loader)
    journal = Journal(run.lake, config.run, step=counters.step, world=world, began=began) if rank == 0 else None
    watch = Watch(
        *(run.lake, config.run), rank=rank, world=world, timeout_s=config.workers.stall_timeout_s, step=counters.step,
        say=partial(_say_last, place.reporter),
    )  # fmt: skip
    answered = 0
    with watch:
        for samples in loader:
            watch.step(counters.step)
            loss = trainer.update(samples)
            meter.add(loss, samples)
            saver.poll()
            if counters.bad_in_a_row >= config.max_bad_steps:
                raise AltDiffusionError(
                    f"run {config.run}, step {counters.step}",
                    f"loss or gradient was not finite in {counters.bad_in_a_row} steps in a row",
                    "lower optimizer.lr, use precision fp32 or look at the data of these steps; "
                    f"the last checkpoint is of step {saver.newest.step if saver.newest else 0}",
                )
            if guard is not None:
                guard.judge(float(mean_over_ranks(loss.detach().clone(), world)), samples.step)
            last = counters.step == config.steps
            if journal is not None:
                journal.beat(counters.step, stall_s=saver.stall_s)
            level = agreement.level(place.notice.level)
            if level == SAVE and answered and counters.step == answered + 1:
                level = NONE  # what was given at the step of the answer is answered
            if counters.step % config.log_every == 0 or last:
                progress = meter.close(order, saver.stall_s)
                if journal is not None:
                    done = journal.note(counters.step, stall_s=saver.stall_s, finished=last)
                    place.reporter.progress(replace(progress, goodput=done))
            if counters.step % config.checkpoint_every == 0 or last or level != NONE:
                state = trainer.state(_finite(loss, world)) | {"skipped_batches": skipped}
                if guard is not None:
                    state["guard"] = guard.state()
                saver.save(trainer.tensors(), state, last=last or level == STOP)
            if level == SAVE:
                answered = counters.step
                place.notice.answered()
            elif level == STOP and not last:
                if journal is not None:
                    journal.note(counters.step, stall_s=saver.stall_s)
                raise Resumable(
                    f"run {config.run}",
                    f"was told to stop and did so at step {counters.step}, whose checkpoint is written",
                    "run the same command again to go on",
                )
        agreement.close()
    assert saver.newest is not None
    return saver.newest


def windows_of(found: Checkpoint | None) -> Windows:
    """The batches that a run had left out, up to a checkpoint, because the loss spiked there."""
    return () if found is None else tuple((int(a), int(b)) for a, b in found.state()["skipped_batches"])


def _go_back(
    run: ResolvedRun, reporter: Reporter, skipped: Windows, first: int, after: int, why: str
) -> tuple[Checkpoint | None, Windows]:
    """The last checkpoint before a spike, and the batches that are left out from now on."""
    config = run.config
    assert config.guards.spike is not None
    if len(skipped) >= config.guards.spike.max_rollbacks:
        raise AltDiffusionError(
            f"run {config.run}",
            f"{why}, after it had gone back {len(skipped)} times",
            "look at the data of these batches, lower optimizer.lr, or raise guards.spike.max_rollbacks",
        )
    step = step_of(merged([*config.guards.skip_batches, *skipped]), first)
    for later in reversed(checkpoints.steps(run.lake, config.run)):
        if later > step:  # it was made from what is left out now
            checkpoints.remove(run.lake, config.run, later)
    found = newest(run, reporter.warning)
    reporter.warning(
        f"{why}: going back to {f'the checkpoint of step {found.step}' if found else 'the start'}, "
        f"batches {first} to {after - 1} are left out"
    )
    return found, (*skipped, (first, after))


def _say_last(reporter: Reporter, text: str) -> None:
    """A warning after which the process may end at once."""
    reporter.warning(text)
    reporter.flush()


def _check_tokens(run: ResolvedRun, tokens: Sequence[TokenColumn]) -> None:
    for version in run.versions():
        check_token_ids(version, tokens)


def _finite(loss: Tensor, world: int) -> float | None:
    """The loss of the last step over all ranks, where it is a number."""
    value = float(mean_over_ranks(loss.detach().clone(), world))
    return value if math.isfinite(value) else None


def _find(run: ResolvedRun, reporter: Reporter) -> Checkpoint | None:
    found = newest(run, reporter.warning)
    own = found is not None and found.run == run.config.run
    checkpoints.sweep(run.lake, run.config.run, found.step if found is not None and own else 0)
    return found
