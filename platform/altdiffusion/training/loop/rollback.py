"""The way back after a loss has spiked: to the checkpoint before, and without the batches that caused the spike."""

from __future__ import annotations

from altdiffusion.errors import AltDiffusionError
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.checkpoints.format import Checkpoint
from altdiffusion.training.faults.spikes import LossSpiked
from altdiffusion.training.order.skips import Windows, merged, step_of
from altdiffusion.training.reporting.reporter import Reporter
from altdiffusion.training.run.resolved import ResolvedRun
from altdiffusion.training.weights import newest


def windows_of(found: Checkpoint | None) -> Windows:
    """Return the batches that a run has left out, up to a checkpoint, because the loss spiked there."""
    return () if found is None else tuple((int(a), int(b)) for a, b in found.state()["skipped_batches"])


def go_back(
    run: ResolvedRun, reporter: Reporter, skipped: Windows, spike: LossSpiked
) -> tuple[Checkpoint | None, Windows]:
    """Remove the checkpoints that were made from a spike's batches; for rank 0 alone.

    Args:
        skipped: batches that are left out already.

    Returns:
        The last checkpoint before the spike (None is the start), and the batches that are left out from now on.

    Raises:
        AltDiffusionError: the run has gone back too often.
    """
    config = run.config
    assert config.guards.spike is not None
    if len(skipped) >= config.guards.spike.max_rollbacks:
        raise AltDiffusionError(
            f"run {config.run}",
            f"{spike}, after it had gone back {len(skipped)} times",
            "look at the data of these batches, lower optimizer.lr, or raise guards.spike.max_rollbacks",
        )
    step = step_of(merged([*config.guards.skip_batches, *skipped]), spike.first)
    for later in reversed(checkpoints.steps(run.lake, config.run)):
        if later > step:  # it was made from what is left out now
            checkpoints.remove(run.lake, config.run, later)
    found = newest(run, reporter.warning)
    reporter.warning(
        f"{spike}: going back to {f'the checkpoint of step {found.step}' if found else 'the start'}, "
        f"batches {spike.first} to {spike.after - 1} are left out"
    )
    return found, (*skipped, (spike.first, spike.after))
