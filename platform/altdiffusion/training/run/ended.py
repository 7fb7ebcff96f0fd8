"""Whether a run has ended: at its last step, or earlier, by its loss on held-out rows."""

from __future__ import annotations

from altdiffusion.training.checkpoints.format import Checkpoint
from altdiffusion.training.config import TrainConfig

VALIDATION = "validation"
"""Key of state.json under which a checkpoint keeps what was measured on held-out rows."""


def has_ended(config: TrainConfig, found: Checkpoint | None) -> bool:
    """Return whether a run has nothing left to do behind a checkpoint of it.

    A run that ended early goes on where its config is given a larger `validation.patience`, or none.
    """
    if found is None or found.step >= config.steps:
        return found is not None
    settings = config.validation
    if settings is None or settings.patience is None or found.run != config.run:
        return False
    known = found.state().get(VALIDATION)
    return known is not None and int(known["without_improvement"]) >= settings.patience
