"""To which run a name belongs: the record and the checkpoints under it are never continued with another config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.checkpoints.format import Checkpoint
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.order.run_key import RunKey
from altdiffusion.training.run.continuing import OVERRIDES
from altdiffusion.training.run.meaning import differences
from altdiffusion.training.run.record import read_record
from altdiffusion.training.run.resolved import ResolvedRun


def own_record(config: TrainConfig, lake: str) -> dict[str, Any] | None:
    """Return run.json of this run, or None where it has no checkpoints: without one, the name is free.

    Raises:
        AltDiffusionError: the name belongs to a run of another stage.
    """
    record = read_record(lake, config.run) if checkpoints.steps(lake, config.run) else None
    if record is not None and record["stage"] != config.stage:
        raise _another(config, f"belongs to a run of stage {record['stage']}, this config is of stage {config.stage}")
    return record


def key_of(config: TrainConfig, lake: str, record: Mapping[str, Any] | None) -> RunKey:
    """Return the key that the run began with, or that of a new run."""
    if record is not None:
        return RunKey.read(record, f"run.json of run {config.run}")
    if checkpoints.steps(lake, config.run):
        found = checkpoints.latest_verified(lake, config.run)  # its run.json was lost
        if found is not None:
            return RunKey.read(found.state(), f"checkpoint {found.folder}, file {checkpoints.STATE}")
    return RunKey.of(config)


def refuse_another(run: ResolvedRun, record: Mapping[str, Any] | None) -> None:
    """Refuse a run whose name belongs to a run with another config.

    Raises:
        AltDiffusionError: names every setting that differs, with both values.
    """
    if record is None or record["fingerprint"] == run.fingerprint:
        return
    found = differences(record["meaning"], run.meaning)
    changed = [f"{key} ({before!r}, now {now!r})" for key, before, now in found]
    if [str(ref) for ref in run.datasets] != record["datasets"]:
        changed.append(f"datasets (it was started with {', '.join(record['datasets'])})")
    may = len(changed) == len(found) > 0 and all(key.startswith(OVERRIDES) for key, _, _ in found)
    raise _another(run.config, f"belongs to a run with another {' and '.join(changed) or 'start model'}", may)


def check_checkpoint(run: ResolvedRun, found: Checkpoint) -> None:
    """Refuse a checkpoint of another config; a resume calls it with the newest verified one.

    Raises:
        AltDiffusionError: the checkpoint has another fingerprint than the run.
    """
    if found.config_fingerprint != run.fingerprint:
        what = f"stage {found.stage}" if found.stage != run.config.stage else "another config"
        raise _another(run.config, f"has checkpoints of {what} (fingerprint {found.config_fingerprint[:12]})")


def _another(config: TrainConfig, problem: str, may_continue: bool = False) -> AltDiffusionError:
    """Return the error.

    Args:
        may_continue: whether a run with this config may continue a checkpoint of the run that has the name.
    """
    if may_continue:
        return AltDiffusionError(
            f"run name {config.run!r}",
            problem,
            f"add train.continue_as={config.run}-2 (any name that is free) to the same command: a new run continues "
            "the newest checkpoint with these settings; or restore the config to continue the run itself",
        )
    return AltDiffusionError(
        f"run name {config.run!r}",
        problem,
        "give this config another run name, restore the config to continue that run (a dataset is kept at a version by "
        f"name@digest), or start another run from its weights by start: {{checkpoint: {config.run}}}",
    )
