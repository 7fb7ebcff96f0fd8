"""Runs that continue another one: `train.continue_from: RUN@STEP`.

A resume is the same command again, with the same config. To go on with another learning rate, give that command
`train.continue_as=NAME` as well, which means a run NAME with `continue_from` the newest checkpoint. That run continues
the checkpoint of the other: with its weights, averages, moments, counters, skipped batches and key.
Batches, noise and timesteps are those that the other run would have had. The settings that may differ are listed here:
with any other change, the position or the moments would belong to another run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from altdiffusion.config import from_dict
from altdiffusion.constraints import Invalid
from altdiffusion.diffusion.folder import model_ref
from altdiffusion.errors import AltDiffusionError
from altdiffusion.refs import Ref
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.checkpoints.format import Checkpoint
from altdiffusion.training.config import StartConfig, TrainConfig
from altdiffusion.training.config.run import CONTINUED
from altdiffusion.training.order.skips import Windows, batch_at, merged
from altdiffusion.training.run.meaning import differences
from altdiffusion.training.run.record import read_record
from altdiffusion.training.run.starts import checked_digest, start_folder

OVERRIDES = (
    "optimizer.lr",
    "optimizer.warmup_steps",
    "optimizer.decay_from",
    "optimizer.decay_until",
    "optimizer.max_grad_norm",
    "optimizer.betas",
    "optimizer.eps",
    "optimizer.weight_decay",
    "optimizer.ema_decay",
    "objective.min_snr_gamma",
    "objective.noise_offset",
    "caption_drop",
    "precision",
    "guards.spike",
    "guards.skip_batches",
)
"""Settings that may differ from those of the run that is continued, in addition to the operational ones."""
_OWN = ("run", "continue_from", "key", "datasets", "start")
"""Keys that are compared in another way: datasets and start by their content."""


def find_continued(config: TrainConfig, lake: str) -> tuple[Mapping[str, Any], Checkpoint]:
    """Return the record of the run that a config continues, and the checkpoint, verified.

    Raises:
        AltDiffusionError: there is no such run or checkpoint.
    """
    match = CONTINUED.fullmatch(str(config.continue_from))
    assert match is not None
    name, step = match["run"], int(match["step"])
    record = read_record(lake, name)
    if record is None:
        raise AltDiffusionError(
            f"run {name}, named by continue_from of run {config.run}",
            f"is not in the lake {lake}",
            f"name one that is; runs with checkpoints: {checkpoints.known_runs(lake)}",
        )
    return record, checkpoints.open_step(lake, name, step)


def continuation(config: TrainConfig, lake: str) -> TrainConfig:
    """Return the config of the run that `continue_as` names: it continues the newest checkpoint of `run`.

    The same command again resumes that run: it continues the checkpoint that it continued before.

    Raises:
        AltDiffusionError: `run` has no checkpoint, or the name belongs to a run that does not continue it.
    """
    if config.continue_as is None:
        return config
    name, there = config.continue_as, None
    if checkpoints.steps(lake, name):
        there = read_record(lake, name)
    if there is not None:
        point = str(there["config"].get("continue_from"))
        if point.partition("@")[0] != config.run:
            raise AltDiffusionError(
                f"run name {name!r}, given as continue_as",
                f"belongs to a run that does not continue {config.run}",
                "give a name that is free",
            )
    else:
        newest = checkpoints.latest_intact(lake, config.run)
        if newest is None:
            raise AltDiffusionError(
                f"run {config.run}, which {name} is to continue",
                f"has no checkpoint in the lake {lake}",
                f"train it first; runs with checkpoints: {checkpoints.known_runs(lake)}",
            )
        point = f"{config.run}@{newest.step}"
    try:
        return replace(config, run=name, continue_from=point, continue_as=None, key=None)
    except Invalid as wrong:
        remedy = f"{wrong.remedy}: add train.steps={2 * config.steps}" if wrong.key == "steps" else wrong.remedy
        raise AltDiffusionError(
            f"run {name}, which continues {point}, key {wrong.key}", f"value {wrong.value} {wrong.problem}", remedy
        ) from wrong


def continued_start(config: TrainConfig, earlier: Mapping[str, Any], lake: str) -> StartConfig:
    """Return what the run that is continued was started from.

    Raises:
        AltDiffusionError: the config names another start.
    """
    given, before = config.start, from_dict(StartConfig, earlier["config"]["start"])
    named = (given.base, given.text_encoder, given.checkpoint)
    if named == (None, None, None):
        return before
    models = iter(earlier["models"])
    wrong = (given.checkpoint, given.weights) != (before.checkpoint, before.weights)
    for uri, part in ((given.base, "base"), (given.text_encoder, "text_encoder")):
        if uri is not None and not wrong:
            folder = start_folder(uri, lake, part, given.base_configs)  # type: ignore[arg-type]
            found = model_ref(folder, checked_digest(folder))
            wrong = found.digest != Ref.parse(next(models, str(found))).digest
    if wrong:
        raise AltDiffusionError(
            f"config of run {config.run}, key start",
            f"is not what run {earlier['run']} was started from, which it continues",
            "leave start out: the checkpoint brings all of it",
        )
    return before


def check_overrides(
    config: TrainConfig,
    meaning: Mapping[str, Any],
    record: Mapping[str, Any],
    found: Checkpoint,
    datasets: Sequence[str],
) -> None:
    """Refuse a continued run that differs in more than it may.

    Args:
        config: the run's config, resolved.
        meaning: the settings that decide its result.
        record: the record of the run that it continues.
        found: the checkpoint that it continues.
        datasets: the references of its datasets.

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
        was, now = ([entry.get(name) for entry in tree["datasets"]] for tree in (before, meaning))
        if was != now:
            changed.append(f"{what} ({was}, now {now})")
    if changed:
        raise AltDiffusionError(
            f"run {config.run}, which continues {config.continue_from}",
            f"differs from it in {' and '.join(changed)}",
            f"only {', '.join(OVERRIDES)} and operational settings may differ; for others start a run from its weights "
            f"(start: {{checkpoint: {record['run']}}})",
        )
    rolled_back = found.state()["skipped_batches"]
    skipped, now_skipped = (
        merged([*windows, *rolled_back]) for windows in (before["guards"]["skip_batches"], config.guards.skip_batches)
    )
    position = batch_at(skipped, found.step - 1) + 1 if found.step else 0
    if _below(skipped, position) != _below(now_skipped, position):
        raise AltDiffusionError(
            f"run {config.run}, key guards.skip_batches",
            f"changes batches before {position}, which were trained on by step {found.step} of {record['run']}",
            f"leave those as that run has them, and name batches from {position} on",
        )


def _below(windows: Windows, position: int) -> Windows:
    """Return the part of some windows that is before a batch."""
    return tuple((first, min(after, position)) for first, after in windows if first < position)
