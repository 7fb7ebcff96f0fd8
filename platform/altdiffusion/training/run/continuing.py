"""Runs that continue another one: `train.continue_from: RUN@STEP`.

A resume is the same command again, with the same config. To go on with another learning rate, a run with a name of
its own continues a checkpoint of the other: with its weights, averages, moments, counters, skipped batches and key.
Batches, noise and timesteps are those that the other run would have met. What may differ is listed here, since a change
of anything else would make the position or the moments those of something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.checkpoints.format import Checkpoint
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.config.run import CONTINUED
from altdiffusion.training.order.skips import Windows, batch_at, merged
from altdiffusion.training.run.record import read_record

OVERRIDES = (
    "optimizer.lr",
    "optimizer.warmup_steps",
    "optimizer.betas",
    "optimizer.eps",
    "optimizer.weight_decay",
    "optimizer.ema_decay",
    "objective.min_snr_gamma",
    "caption_drop",
    "precision",
    "guards.spike",
    "guards.skip_batches",
)
"""Settings that may differ from those of the run that is continued; and all that are operational."""
_OWN = ("run", "continue_from", "key", "datasets", "start")
"""Keys that are compared otherwise: datasets and start by what they are."""


def find_continued(config: TrainConfig, lake: str) -> tuple[Mapping[str, Any], Checkpoint]:
    """Return the record of the run that a config continues, and the checkpoint, verified.

    Raises:
        AltDiffusionError: no such run or checkpoint.
    """
    match = CONTINUED.fullmatch(str(config.continue_from))
    assert match is not None
    name, step = match["run"], int(match["step"])
    record = read_record(lake, name)
    if record is None:
        known = ", ".join(checkpoints.run_names(lake)) or "none"
        raise AltDiffusionError(
            f"run {name}, named by continue_from of run {config.run}",
            f"is not in the lake {lake}",
            f"name one that is; runs with checkpoints: {known}",
        )
    return record, checkpoints.open_step(lake, name, step)


def check_overrides(
    config: TrainConfig,
    meaning: Mapping[str, Any],
    record: Mapping[str, Any],
    found: Checkpoint,
    datasets: Sequence[str],
) -> None:
    """Refuse a continued run that differs in more than it may.

    Args:
        config: the run's, resolved.
        meaning: what decides its result.
        record: of the run that it continues.
        found: the checkpoint.
        datasets: references of its datasets.

    Raises:
        AltDiffusionError: names every such setting with both values.
    """
    before = record["meaning"]
    changed = [
        f"{key} ({was!r}, now {now!r})"
        for key, was, now in differences(
            {key: value for key, value in before.items() if key not in _OWN},
            {key: value for key, value in meaning.items() if key not in _OWN},
        )
        if not key.startswith(OVERRIDES)
    ]
    if list(datasets) != record["datasets"]:
        changed.append(f"datasets ({', '.join(record['datasets'])}, now {', '.join(datasets)})")
    for what, name in (("weights of datasets", "weight"), ("mirrored datasets", "mirrored")):
        told = [[entry.get(name) for entry in tree["datasets"]] for tree in (before, meaning)]
        if told[0] != told[1]:
            changed.append(f"{what} ({told[0]}, now {told[1]})")
    if changed:
        raise AltDiffusionError(
            f"run {config.run}, which continues {config.continue_from}",
            f"differs from it in {' and '.join(changed)}",
            f"only {', '.join(OVERRIDES)} and operational settings may differ; for others start a run from its weights "
            f"(start: {{checkpoint: {record['run']}}})",
        )
    rolled_back = found.state()["skipped_batches"]
    skipped, now = (
        merged([*windows, *rolled_back]) for windows in (before["guards"]["skip_batches"], config.guards.skip_batches)
    )
    position = batch_at(skipped, found.step - 1) + 1 if found.step else 0
    if _below(skipped, position) != _below(now, position):
        raise AltDiffusionError(
            f"run {config.run}, key guards.skip_batches",
            f"changes batches before {position}, which were trained on by step {found.step} of {record['run']}",
            f"leave those as that run has them, and name batches from {position} on",
        )


def differences(before: Any, now: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """Return dotted keys whose values differ, with both values."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        found: list[tuple[str, Any, Any]] = []
        for name in sorted(before.keys() | now.keys()):
            found += differences(before.get(name), now.get(name), f"{key}.{name}" if key else str(name))
        return found
    if isinstance(before, (list, tuple)) and isinstance(now, (list, tuple)) and list(before) == list(now):
        return []
    return [] if before == now else [(key, before, now)]


def _below(windows: Windows, position: int) -> Windows:
    """The part of some windows that lies before a batch."""
    return tuple((first, min(after, position)) for first, after in windows if first < position)
