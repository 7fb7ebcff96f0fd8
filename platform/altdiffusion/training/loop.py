"""The training loop: plain torch and torch.distributed.

It runs in one process, under torchrun or in Ray's workers alike: whoever starts it sets up the process group. All
that decides the result is a function of the config and the step, so a run that was killed and started again equals
one that was not, bit for bit, on the same hardware with the same number of workers and threads. Another number of
workers changes the rounding of sums and nothing else.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from altdiffusion.config import semantic
from altdiffusion.diffusion import noise
from altdiffusion.diffusion.models import ModelBundle, trainable_parameters
from altdiffusion.diffusion.objective import Schedule, squared_error
from altdiffusion.diffusion.text_encoder import encode_text, tokenize
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from altdiffusion.training import checkpoint as checkpoints
from altdiffusion.training.checkpoint import Checkpoint
from altdiffusion.training.data import Loader, RowGroups, Samples
from altdiffusion.training.ema import Ema
from altdiffusion.training.gradients import SummedGradients
from altdiffusion.training.mixture import make_order, parts_of
from altdiffusion.training.order import Order
from altdiffusion.training.report import Progress, Reporter
from altdiffusion.training.resolve import ResolvedRun, check_checkpoint, check_shapes, load_models
from altdiffusion.training.text_cache import TextCache

T = TypeVar("T")


@dataclass(kw_only=True)
class Counters:
    """Numbers that a checkpoint carries beside tensors."""

    step: int = 0
    """Batches consumed: the next batch is the one with this number."""
    updates: int = 0
    """Of the weights; less than `step` by the skipped ones."""
    skipped: int = 0
    bad_in_a_row: int = 0


class Trainer:
    """Model, optimizer and averages of one rank, and one update of them.

    Args:
        run: what is trained.
        bundle: its models on the CPU; the trainer moves what it needs to `device`.
        world: number of ranks; with more than one, a process group is set up.
    """

    def __init__(self, run: ResolvedRun, bundle: ModelBundle, *, device: torch.device, world: int = 1) -> None:
        config = run.config
        self.run, self.config, self.device, self.world = run, config, device, world
        self.counters = Counters()
        self.unet = bundle.unet.to(device).train()
        self.text_encoder = bundle.text_encoder.to(device).eval().requires_grad_(False)
        self.pad_id = int(bundle.tokenizer.pad_token_id)
        self.empty_ids = tokenize(bundle.tokenizer, [""])[0].to(device)
        self.schedule = Schedule.scaled_linear(device, zero_terminal_snr=config.objective.zero_terminal_snr)
        trained = trainable_parameters(self.unet, config.trainable)
        self.names = [name for name, _ in trained]
        self.parameters = [parameter for _, parameter in trained]
        self.ema = Ema(self.parameters)
        settings = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=torch.tensor(0.0) if device.type == "cuda" else 0.0,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        for parameter in self.parameters:  # from the start, so that a checkpoint always holds all of it
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }
        cache_mb = config.workers.text_cache_mb
        self.encode = TextCache(self._encode, cache_mb << 20) if cache_mb else self._encode
        self._gradients = SummedGradients(self.parameters) if world > 1 else None
        self.grad_norm = math.nan

    def update(self, samples: Samples) -> Tensor | None:
        """One update with this rank's samples of a global batch.

        Returns:
            Mean loss of this rank's samples (float32 scalar on the device), or None if a loss or gradient of any
            rank is not finite: then nothing changes but the counters.
        """
        total = torch.zeros((), device=self.device)
        share = 1.0 / (self.config.accumulation_of(self.world) * self.world)
        if self._gradients is not None:
            self._gradients.zero()
        else:
            self.optimizer.zero_grad(set_to_none=True)
        pieces = list(samples.micro(self.config.micro_batch))
        for number, piece in enumerate(pieces):
            loss = self.loss(piece)
            if self._gradients is not None and number + 1 == len(pieces):
                self._gradients.last()
            (loss * share).backward()
            total += loss.detach()
        if self._gradients is not None:
            self._gradients.wait()
        counters = self.counters
        counters.step += 1
        if not self._finite():
            counters.skipped += 1
            counters.bad_in_a_row += 1
            return None
        counters.updates += 1
        counters.bad_in_a_row = 0
        self._set_lr(self.config.optimizer.lr_at(counters.step - 1))
        self.optimizer.step()
        self.ema.update(self.config.optimizer.ema_decay_at(counters.updates))
        return total / len(pieces)

    def loss(self, samples: Samples) -> Tensor:
        """Mean loss of some samples, with everything drawn for them keyed by their positions."""
        config, objective = self.config, self.config.objective
        positions = samples.positions.to(self.device, non_blocking=True)
        latents = samples.latents.to(self.device, non_blocking=True).float()
        ids = samples.token_ids.to(self.device, non_blocking=True)
        eps = noise.keyed_normal(config.seed, positions, noise.NOISE, latents.shape[1:])
        timesteps = noise.keyed_timesteps(config.seed, positions, self.schedule.steps)
        if config.caption_drop > 0:
            drop = noise.keyed_uniform(config.seed, positions, noise.CAPTION_DROP) < config.caption_drop
            ids = torch.where(drop.unsqueeze(1), self.empty_ids, ids)
        with self._autocast():
            context = self.encode(ids)
            noisy = self.schedule.add_noise(latents, eps, timesteps)
            predicted = self.unet(noisy, timesteps, encoder_hidden_states=context, return_dict=False)[0]
        target = self.schedule.target(objective.prediction, latents, eps, timesteps)
        errors = squared_error(predicted, target)
        if objective.min_snr_gamma is not None:
            errors = errors * self.schedule.min_snr_weights(objective.prediction, objective.min_snr_gamma, timesteps)
        return errors.mean()

    def _encode(self, token_ids: Tensor) -> Tensor:
        """The UNet's context: [B, T, D] of int64 [B, T]."""
        with torch.no_grad():
            return encode_text(self.text_encoder, token_ids, self.pad_id)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.config.precision == "bf16":
            context: contextlib.AbstractContextManager[Any] = torch.autocast(self.device.type, dtype=torch.bfloat16)
            return context
        return contextlib.nullcontext()

    def _finite(self) -> bool:
        """Whether the gradient's norm is finite; the gradient is the sum over ranks, so all ranks answer the same."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        self.grad_norm = float(norm)
        return math.isfinite(self.grad_norm)

    def _set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of a checkpoint, by file and name."""
        moments = {}
        for name, parameter in zip(self.names, self.parameters, strict=True):
            state = self.optimizer.state[parameter]
            moments[f"exp_avg/{name}"] = state["exp_avg"]
            moments[f"exp_avg_sq/{name}"] = state["exp_avg_sq"]
        return {
            checkpoints.UNET: dict(self.unet.state_dict()),
            checkpoints.EMA: dict(zip(self.names, self.ema.averages, strict=True)),
            checkpoints.OPTIMIZER: moments,
        }

    def load(self, found: Checkpoint) -> None:
        """Takes averages, optimizer and counters over; the UNet's weights were loaded with the models."""
        state = found.state()
        for key in Counters.__dataclass_fields__:
            setattr(self.counters, key, int(state[key]))
        mine = self.tensors()
        for name in (checkpoints.EMA, checkpoints.OPTIMIZER):
            tensors = found.tensors(name)
            check_shapes(mine[name], tensors, f"checkpoint file {files.join(found.folder, name)}")
            for key, tensor in tensors.items():
                mine[name][key].detach().copy_(tensor)
        for parameter in self.parameters:  # AdamW counts its updates in a tensor of each parameter
            self.optimizer.state[parameter]["step"].fill_(float(self.counters.updates))

    def state(self, loss: float | None) -> dict[str, Any]:
        """The content of state.json."""
        counters = self.counters
        return {
            "format": checkpoints.FORMAT,
            "step": counters.step,
            "updates": counters.updates,
            "skipped": counters.skipped,
            "bad_in_a_row": counters.bad_in_a_row,
            "samples_seen": counters.step * self.config.global_batch,
            "stage": self.config.stage,
            "trained": self.config.trainable,
            "config": semantic(self.config),
            "config_fingerprint": self.run.fingerprint,
            "parents": [str(ref) for ref in self.run.parents],
            "metrics": {} if loss is None else {"train/loss": loss},
        }


def open_data(run: ResolvedRun) -> tuple[Order, list[RowGroups]]:
    """The order of a run, and the rows of its parts: one part for each weighted dataset, else all in a row as one."""
    config, versions = run.config, run.versions()
    groups = parts_of(config, versions)
    cache_bytes = (config.workers.cache_mb << 20) // len(groups)
    order = make_order(config, versions)
    rows = [RowGroups(group, cache_bytes=cache_bytes) for group in groups]
    return order, rows


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
    found = _agree(lambda: _find(run, reporter), rank, world)
    if rank == 0:
        checkpoints.sweep(run.lake, config.run)
    if found is not None and found.step >= config.steps:
        return found
    trainer = Trainer(run, load_models(run, found), device=torch.device(device), world=world)
    if counters is not None:
        trainer.counters = counters
    if found is not None:
        trainer.load(found)
    order, rows = open_data(run)
    loader = Loader(
        order,
        rows,
        rank=rank,
        world=world,
        start=trainer.counters.step,
        stop=config.steps,
        ahead=config.workers.prefetch,
    )
    try:
        return _steps(run, trainer, loader, order, reporter, rank, world, found)
    finally:
        loader.close()


def _steps(
    run: ResolvedRun,
    trainer: Trainer,
    loader: Loader,
    order: Order,
    reporter: Reporter,
    rank: int,
    world: int,
    found: Checkpoint | None,
) -> Checkpoint:
    config, counters = run.config, trainer.counters
    window = _Window(trainer, loader)
    written = found
    for samples in loader:
        loss = trainer.update(samples)
        window.add(loss)
        if counters.bad_in_a_row >= config.max_bad_steps:
            raise AltDiffusionError(
                f"run {config.run}, step {counters.step}",
                f"loss or gradient was not finite in {counters.bad_in_a_row} steps in a row",
                "lower optimizer.lr, use precision fp32 or look at the data of these steps; "
                f"the last checkpoint is of step {written.step if written else 0}",
            )
        last = counters.step == config.steps
        if counters.step % config.log_every == 0 or last:
            progress = window.close(order)
            if rank == 0:
                reporter.progress(progress)
        if counters.step % config.checkpoint_every == 0 or last:
            written = _save(run, trainer, loss, reporter, rank, world, last) or written
    assert written is not None
    return written


class _Window:
    """Sums over the steps since the last report."""

    def __init__(self, trainer: Trainer, loader: Loader) -> None:
        self._trainer, self._loader = trainer, loader
        self._began = self._start = time.perf_counter()
        self._first = self._since = trainer.counters.step
        self._waited = 0.0
        self._sums = torch.zeros(2, device=trainer.device)  # loss, steps that have one

    def add(self, loss: Tensor | None) -> None:
        if loss is not None:
            self._sums[0] += loss
            self._sums[1] += 1

    def close(self, order: Order) -> Progress:
        """The report on all ranks' steps; every rank calls it at the same steps."""
        trainer, now = self._trainer, time.perf_counter()
        config, counters = trainer.config, trainer.counters
        sums = torch.cat([self._sums, torch.tensor([self._loader.waited_s - self._waited], device=trainer.device)])
        if trainer.world > 1:
            dist.all_reduce(sums)
        loss, count, waited = sums.tolist()
        seconds = max(now - self._start, 1e-9)
        done, pace = counters.step - self._since, (now - self._began) / max(1, counters.step - self._first)
        self._start, self._since, self._waited = now, counters.step, self._loader.waited_s
        self._sums.zero_()
        return Progress(
            step=counters.step,
            steps=config.steps,
            loss=loss / count if count else math.nan,
            grad_norm=trainer.grad_norm,
            lr=config.optimizer.lr_at(counters.step - 1),
            images_per_second=done * config.global_batch / seconds,
            data_wait=waited / trainer.world / seconds,
            epochs=order.epochs(counters.step)[0],
            samples_seen=counters.step * config.global_batch,
            skipped_steps=counters.skipped,
            seconds_left=(config.steps - counters.step) * pace,
        )


def _save(
    run: ResolvedRun, trainer: Trainer, loss: Tensor | None, reporter: Reporter, rank: int, world: int, last: bool
) -> Checkpoint | None:
    """Writes a checkpoint on rank 0; all ranks call it. A failed write ends the run only where it is the last one."""
    value = float("nan") if loss is None else float(_mean(loss.detach().clone(), world))

    def write() -> Checkpoint | None:
        try:
            written = checkpoints.write(
                run.lake,
                run=run.config.run,
                step=trainer.counters.step,
                stage=run.config.stage,
                config_fingerprint=run.fingerprint,
                parents=[str(ref) for ref in run.parents],
                tensors=trainer.tensors(),
                state=trainer.state(value if math.isfinite(value) else None),
            )
        except OSError as error:
            what = f"checkpoint of step {trainer.counters.step} in {checkpoints.run_folder(run.lake, run.config.run)}"
            if last:
                raise AltDiffusionError(
                    what, f"could not be written ({error})", "free space there, then run the same command again"
                ) from error
            reporter.warning(f"{what} could not be written ({error}); the one before is kept, training goes on")
            return None
        checkpoints.prune(run.lake, run.config.run, run.config.keep_last)
        reporter.checkpoint(written)
        return written

    return _agree(write, rank, world)


def _find(run: ResolvedRun, reporter: Reporter) -> Checkpoint | None:
    found = checkpoints.latest_verified(run.lake, run.config.run, reporter.warning)
    if found is not None:
        check_checkpoint(run, found)
    return found


def _mean(value: Tensor, world: int) -> Tensor:
    if world > 1:
        dist.all_reduce(value)
        value /= world
    return value


def _agree(action: Callable[[], T], rank: int, world: int) -> T:
    """Runs an action on rank 0 and gives its result, or its error, to every rank: none is left waiting."""
    if world == 1:
        return action()
    outcome: list[Any] = [None, None]
    if rank == 0:
        try:
            outcome[0] = action()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return cast(T, outcome[0])
