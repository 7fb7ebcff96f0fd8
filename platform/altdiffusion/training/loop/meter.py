"""What a run did since its last report: loss, throughput, utilisation, waiting, memory."""

from __future__ import annotations

import math
import time

import torch
import torch.distributed as dist
from torch import Tensor

from altdiffusion.training.data.loader import Loader, Samples
from altdiffusion.training.order.batches import Order
from altdiffusion.training.reporting.memory import peak_bytes
from altdiffusion.training.reporting.peak import find_peak
from altdiffusion.training.reporting.progress import Progress
from altdiffusion.training.update.trainer import Trainer
from altdiffusion.training.waiting import waiting


class Meter:
    """Sums over the steps since the last report."""

    def __init__(self, trainer: Trainer, loader: Loader, order: Order) -> None:
        self._trainer, self._loader, self._order = trainer, loader, order
        self._began = self._start = time.perf_counter()
        self._first = self._since = trainer.counters.step
        self._waited = self._stalled = 0.0
        self._warm = False
        self._losses: list[Tensor] = []  # on the device: summing them up waits for the report
        self._flops = 0.0  # of this rank
        self._peak = find_peak(trainer.device, trainer.config.precision, trainer.config.compute.peak_tflops)

    def add(self, loss: Tensor, samples: Samples) -> None:
        """Add one step: this rank's loss (NaN if the update was skipped) of these samples."""
        self._losses.append(loss)
        began = time.perf_counter()
        self._flops += self._trainer.task.flops(samples) * len(samples.positions)
        counting = time.perf_counter() - began  # a shape's first count takes seconds, which are not training
        self._start += counting
        self._began += counting
        if not self._warm:  # the first step compiles, fills caches and waits for the first rows
            self._warm, self._began, self._first = True, time.perf_counter(), self._trainer.counters.step

    def close(self, stall_s: float = 0.0) -> Progress:
        """Return the report on all ranks' steps, and begin the next one; every rank calls it at the same steps.

        Args:
            stall_s: seconds for which training stopped for checkpoints, since the process began.
        """
        trainer = self._trainer
        config, counters, world = trainer.config, trainer.counters, trainer.world
        trainer.settle()
        losses = torch.stack(self._losses) if self._losses else torch.zeros(0, device=trainer.device)
        known = losses.isfinite()
        sums = torch.cat(
            [
                torch.stack([losses.where(known, 0.0).sum(), known.sum()]),
                torch.tensor([self._loader.waited_s - self._waited, self._flops / 1e12], device=trainer.device),
            ]
        )
        memory = torch.tensor(float(peak_bytes(trainer.device)), dtype=torch.float64, device=trainer.device)
        with waiting():  # its last line waits for the device, and so for the sums of all ranks
            if world > 1:
                dist.all_reduce(sums)
                dist.all_reduce(memory, op=dist.ReduceOp.MAX)
            loss, count, waited, tflop = sums.tolist()  # what follows is measured when the device is done
        now = time.perf_counter()
        seconds = max(now - self._start, 1e-9)
        done, warm = counters.step - self._since, counters.step - self._first
        pace = (now - self._began) / warm if warm else seconds / max(1, done)
        stalled = stall_s - self._stalled
        self._start, self._since, self._waited = now, counters.step, self._loader.waited_s
        self._stalled = stall_s
        self._losses, self._flops = [], 0.0
        return Progress(
            rows_name=trainer.task.layout.rows_name,
            step=counters.step,
            steps=config.steps,
            loss=loss / count if count else math.nan,
            grad_norm=float(trainer.grad_norm),
            lr=config.optimizer.lr_at(counters.step - 1),
            samples_per_second=done * config.global_batch / seconds,
            samples_per_second_per_worker=done * config.global_batch / seconds / world,
            mfu=tflop / seconds / world / self._peak.tflops,
            peak=self._peak,
            memory_bytes=int(memory),
            data_wait=waited / world / seconds,
            epochs=_epochs(self._order, counters.step),
            samples_seen=counters.step * config.global_batch,
            skipped_steps=counters.skipped,
            checkpoint_stall=stalled / seconds,
            seconds_left=(config.steps - counters.step) * pace,
        )


def _epochs(order: Order, step: int) -> float:
    """Return samples seen per row that there is."""
    return step * order.global_batch / sum(part.rows for part in order.parts)
