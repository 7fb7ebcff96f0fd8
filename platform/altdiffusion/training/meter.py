"""What a run did since it last said so: loss, throughput, waiting."""

from __future__ import annotations

import math
import time

import torch
import torch.distributed as dist
from torch import Tensor

from altdiffusion.training.data import Loader
from altdiffusion.training.order import Order
from altdiffusion.training.report import Progress
from altdiffusion.training.trainer import Trainer


class Meter:
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
