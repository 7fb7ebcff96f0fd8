"""Hooks that look at the loss: one ends a run whose loss stays not finite, one sends it back when the loss spikes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.training.checkpoints.format import Checkpoint
from altdiffusion.training.config import SpikeConfig
from altdiffusion.training.faults.spikes import SpikeGuard
from altdiffusion.training.loop.hooks import Hook, Step
from altdiffusion.training.loop.saver import Saver
from altdiffusion.training.ranks import mean_over_ranks
from altdiffusion.training.update.trainer import Trainer


class FiniteLossCheck(Hook):
    """Ends the run after `max_bad_steps` updates in a row whose loss or gradient was not finite."""

    def __init__(self, trainer: Trainer, saver: Saver) -> None:
        self._config, self._counters, self._saver = trainer.config, trainer.counters, saver

    def on_step(self, step: Step) -> None:
        bad = self._counters.bad_in_a_row
        if bad >= self._config.max_bad_steps:
            newest = self._saver.newest
            raise AltDiffusionError(
                f"run {self._config.run}, step {step.number}",
                f"loss or gradient was not finite in {bad} steps in a row",
                "lower optimizer.lr, use precision fp32 or look at the data of these steps; "
                f"the last checkpoint is of step {newest.step if newest else 0}",
            )


class SpikeCheck(Hook):
    """Raises LossSpiked when the mean loss over all ranks leaves its course (see faults.spikes).

    Args:
        found: the checkpoint that the run continues from; its judgements are continued too.
    """

    def __init__(self, config: SpikeConfig, found: Checkpoint | None, world: int) -> None:
        self._guard, self._world = SpikeGuard(config), world
        judged = found.state().get("guard") if found is not None else None
        if judged is not None:  # a run may continue one that had no guard
            self._guard.load(judged)

    def on_step(self, step: Step) -> None:
        loss = mean_over_ranks(step.loss.detach().clone(), self._world)
        self._guard.judge(float(loss), step.samples.step)

    def state(self) -> Mapping[str, Any]:
        return {"guard": self._guard.state()}
