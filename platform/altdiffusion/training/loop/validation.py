"""The hook that measures the loss on held-out rows, and may end the run by it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from altdiffusion.diffusion import noise
from altdiffusion.training.checkpoints.format import Checkpoint
from altdiffusion.training.config import ValidationConfig
from altdiffusion.training.data.loader import Samples
from altdiffusion.training.data.validation_rows import ValidationRows
from altdiffusion.training.loop.hooks import Hook, Step
from altdiffusion.training.reporting.reporter import Measured, Reporter
from altdiffusion.training.run.ended import VALIDATION
from altdiffusion.training.tasks import DiffusionTask
from altdiffusion.training.update.trainer import Trainer
from altdiffusion.training.waiting import waiting

SEED = 0
"""Key of the noise: every run measures with the same noise at the same timesteps."""


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """The unweighted mean squared error per language, and the mean over languages."""

    languages: Mapping[str, float]
    mean: float


class Validation(Hook):
    """Measures before the first step, every `every` steps and after the last one, with the averaged weights.

    All ranks have one, and measure their share of the batches. Batches are always full, so that no kernel is chosen or
    compiled for another shape than in training.

    Args:
        found: the checkpoint that the run goes on from, whose best loss so far is kept.
    """

    def __init__(
        self,
        config: ValidationConfig,
        rows: ValidationRows,
        trainer: Trainer,
        reporter: Reporter,
        *,
        rank: int,
        found: Checkpoint | None,
    ) -> None:
        assert isinstance(trainer.task, DiffusionTask)
        self._config, self._rows, self._trainer, self._task = config, rows, trainer, trainer.task
        self._reporter, self._rank = reporter, rank
        known = found.state().get(VALIDATION) if found is not None else None
        self._fresh = known is None
        self._best, self._best_step, self._without = math.inf, 0, 0
        if known is not None:
            self._best, self._best_step = float(known["best"]), int(known["best_step"])
            self._without = int(known["without_improvement"])

    def on_step_start(self, done: int) -> None:
        if self._fresh:  # what the run starts from
            self._note(done)

    def on_step(self, step: Step) -> None:
        if step.number % self._config.every and not step.last:
            return
        self._note(step.number)
        if self._config.patience is not None and self._without >= self._config.patience and not step.last:
            step.last = True
            if self._rank == 0:
                self._reporter.warning(
                    f"the run ends at step {step.number}: the loss on held-out rows was lowest at step "
                    f"{self._best_step} ({self._best:.5f}), {self._without} measurements ago (validation.patience)"
                )

    def state(self) -> Mapping[str, Any]:
        if self._fresh:
            return {}
        best = {"best": self._best, "best_step": self._best_step, "without_improvement": self._without}
        return {VALIDATION: best}

    def _note(self, step: int) -> None:
        loss = self.measure()
        self._fresh = False
        if loss.mean < self._best:
            self._best, self._best_step, self._without = loss.mean, step, 0
        else:
            self._without += 1
        if self._rank == 0:
            metrics = {f"validation/loss/{code}": value for code, value in loss.languages.items()}
            highest = max(loss.languages, key=lambda code: loss.languages[code])
            text = f"held-out loss at step {step}: {loss.mean:.5f}"
            if len(loss.languages) > 1:
                text += f", highest in {highest} ({loss.languages[highest]:.5f})"
            text += ", the lowest so far" if self._best_step == step else f"; lowest {self._best:.5f}"
            self._reporter.measured(Measured(step=step, metrics={"validation/loss": loss.mean, **metrics}, text=text))

    def measure(self) -> HeldOutLoss:
        """Return the loss of the averaged weights; all ranks call it."""
        device = self._task.device
        sums = torch.zeros(len(self._rows.languages), 2, dtype=torch.float64, device=device)
        with torch.no_grad(), self._trainer.averaged():
            for samples, timesteps, language, counts in self._batches():
                latents = self._task.latents_of(samples)
                ids = samples["token_ids"].to(device).to(torch.int64)
                eps = noise.keyed_normal(SEED, samples.positions.to(device), noise.NOISE, latents.shape[1:])
                errors = self._task.errors(latents, ids, eps, timesteps.to(device)).double()
                both = torch.stack([errors, torch.ones_like(errors)], dim=1) * counts.to(errors).unsqueeze(1)
                sums.index_add_(0, language.to(device), both)
        if self._trainer.world > 1:
            with waiting():
                dist.all_reduce(sums)
        means = (sums[:, 0] / sums[:, 1]).tolist()
        return HeldOutLoss(languages=dict(zip(self._rows.languages, means, strict=True)), mean=sum(means) / len(means))

    def _batches(self) -> Iterator[tuple[Samples, Tensor, Tensor, Tensor]]:
        """Yield this rank's batches: samples, timesteps, languages, and which of them count (0 where they fill up)."""
        times, rows = self._config.timesteps, len(self._rows.language)
        steps, size, world = self._task.schedule.steps, self._trainer.config.micro_batch, self._trainer.world
        total = rows * times
        batches = -(-total // size)
        for turn in range(-(-batches // world)):  # as many on all ranks: a sharded network needs all of them
            pairs = (turn * world + self._rank) * size + torch.arange(size)
            counts, pairs = pairs < total, pairs.clamp(max=total - 1)
            row, part = pairs // times, pairs % times
            tensors = {name: tensor[row] for name, tensor in self._rows.tensors.items()}
            samples = Samples(step=0, positions=pairs, tensors=tensors)
            yield samples, (2 * part + 1) * steps // (2 * times), self._rows.language[row], counts
