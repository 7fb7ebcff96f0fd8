"""Where the learning rate falls (`optimizer.lr_scheduler`): steps that a config leaves out become part of the run.

The number of steps of a run is operational, so a fall must not follow it: a run that is asked for more steps later
would otherwise have had other learning rates from its beginning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.training.config import TrainConfig


def with_fall(config: TrainConfig, own: Mapping[str, Any] | None, continued: Mapping[str, Any] | None) -> TrainConfig:
    """Return a config whose fall is given in steps.

    What is left out is taken from the run's own record, or from that of the run that it continues, where that run had
    the same kind of fall; else the fall begins after the warm-up, or where the run does, and ends with its last step.

    Args:
        own: run.json of this run, where it has begun.
        continued: run.json of the run that it continues.

    Raises:
        AltDiffusionError: the fall has no steps, or ends before the run does, at a learning rate of 0.
    """
    optimizer = config.optimizer
    if optimizer.lr_scheduler == "constant":
        return config
    record = own or continued
    before = record["config"]["optimizer"] if record is not None else {}
    known = before if before.get("lr_scheduler") == optimizer.lr_scheduler else {}
    first, end = optimizer.decay_from, optimizer.decay_until
    if first is None:
        first = known.get("decay_from")
    if end is None:
        end = known.get("decay_until")
    first = max(optimizer.warmup_steps, config.first_step) if first is None else first
    end = config.steps if end is None else end
    if end <= first:
        raise AltDiffusionError(
            f"config of run {config.run}, key optimizer.decay_until",
            f"step {end:,} is not after step {first:,}, where the learning rate begins to fall",
            "give more steps, or a shorter warm-up",
        )
    if config.steps > end and optimizer.lr_end == 0:
        raise AltDiffusionError(
            f"config of run {config.run}, key steps",
            f"asks for {config.steps:,} steps, and the learning rate is 0 from step {end:,} on",
            f"give at most {end:,} steps, an optimizer.lr_end, or, for a run that goes on with a fall of its own, "
            f"train.continue_as=NAME with optimizer.decay_until={config.steps}",
        )
    return replace(config, optimizer=replace(optimizer, decay_from=first, decay_until=end))
