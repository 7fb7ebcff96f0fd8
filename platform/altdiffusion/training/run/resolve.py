"""From a config to a run: every name in it is pinned to a digest, and all of it is checked to fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from altdiffusion.diffusion.hub import absolute
from altdiffusion.errors import AltDiffusionError
from altdiffusion.refs import Ref
from altdiffusion.storage.dataset import Lake
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.checkpoints.format import Checkpoint
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.model.lora import require_peft
from altdiffusion.training.order.mirrored import check_mirrored
from altdiffusion.training.order.run_key import RunKey
from altdiffusion.training.run.continuing import check_overrides, continued_start, find_continued
from altdiffusion.training.run.ended import has_ended
from altdiffusion.training.run.fit import Parties, check_fit
from altdiffusion.training.run.lr_fall import with_fall
from altdiffusion.training.run.meaning import fingerprint_of, meaning_of
from altdiffusion.training.run.origin import origin_of_config, origin_of_run, started_from
from altdiffusion.training.run.resolved import ResolvedRun
from altdiffusion.training.run.run_name import check_checkpoint, key_of, own_record, refuse_another


def resolve(config: TrainConfig, lake: str) -> ResolvedRun:
    """Find what a config names, make it a folder of the lake where it is not one yet (training.run.starts), and check
    that all of it fits (training.run.fit). It reads manifests, a few rows, and the model folders once for their
    digests.

    Raises:
        AltDiffusionError: something is missing or does not fit, or the run's name belongs to a run with another config.
    """
    lake = absolute(lake)
    if config.lora is not None:
        require_peft()  # raised here, before any worker starts
    versions = [Lake(lake).version(dataset.name) for dataset in config.datasets]
    refs = tuple(version.ref for version in versions)
    refuse_twice(config, refs)
    record = own_record(config, lake)
    key = key_of(config, lake, record)
    continued: Checkpoint | None = None
    earlier: Mapping[str, Any] | None = None
    if config.continue_from is not None:
        earlier, continued = find_continued(config, lake)
        key = RunKey.read(earlier, f"run.json of run {earlier['run']}")
        config = replace(config, start=continued_start(config, earlier, lake))
    elif config.start.checkpoint is not None:
        earlier = started_from(config, lake)
    if config.online is not None and config.online.seed is None and key.format == 1:
        config = replace(config, online=replace(config.online, seed=0))  # what null meant
    mirrored = _mirrored(config, lake, refs)
    if earlier is not None:
        origin = origin_of_run(config, lake, earlier, continued, record)
    else:
        origin = origin_of_config(config, lake, record)
    if continued is None:
        origin = origin.with_adapters(config, lake)
    held_out = [] if config.validation is None else [Lake(lake).version(config.validation.dataset)]
    noising = check_fit(
        Parties(
            config=config,
            lake=lake,
            base=origin.base,
            text_encoder=origin.text_encoder,
            teacher=origin.teacher,
            earlier=earlier,
            own=record,
            versions=[*versions, *held_out],
        )
    )
    objective = replace(config.objective, prediction=noising.prediction, zero_terminal_snr=noising.zero_terminal_snr)
    config = with_fall(replace(config, objective=objective), record, earlier if continued is not None else None)
    meaning = meaning_of(config, origin.teacher)
    if continued is not None:
        assert earlier is not None
        check_overrides(config, meaning, earlier, continued, [str(ref) for ref in refs])
    run = ResolvedRun(
        config=config,
        lake=lake,
        fingerprint=fingerprint_of(config, meaning, datasets=refs, mirrored=mirrored, start=origin.content, key=key),
        datasets=refs,
        base=origin.base,
        text_encoder=origin.text_encoder,
        start=origin.start,
        start_fingerprint=origin.start_fingerprint,
        models=origin.models,
        mirrored=mirrored,
        teacher=origin.teacher,
        lora_file=origin.lora_file,
        lora_sha256=origin.lora_sha256,
        continued=continued.ref if continued is not None else None,
        key=key,
        noising=noising,
        meaning=meaning,
    )
    refuse_another(run, record)
    return run


def finished(config: TrainConfig, lake: str) -> Checkpoint | None:
    """Return the newest verified checkpoint of a run that has ended, or None while work is left.

    Raises:
        AltDiffusionError: the run's name belongs to a run with another config.
    """
    run = resolve(config, lake)
    found = checkpoints.latest_verified(run.lake, config.run)
    if found is None:
        return None
    check_checkpoint(run, found)
    return found if has_ended(config, found) else None


def refuse_twice(config: TrainConfig, refs: Sequence[Ref]) -> None:
    """Refuse datasets of which two are one version: as parts of a mixture they would be drawn alike, and its rows would
    not have the share that a weight gives.

    Raises:
        AltDiffusionError: names both places in the config.
    """
    first: dict[str, int] = {}
    for number, ref in enumerate(refs):
        before = first.setdefault(ref.digest, number)
        if before != number:
            names = [f"datasets.{place} ({config.datasets[place].name})" for place in (before, number)]
            raise AltDiffusionError(
                f"config of run {config.run}, {names[0]} and {names[1]}",
                f"name the same version {ref.short}",
                "name it once, with the sum of the weights",
            )


def _mirrored(config: TrainConfig, lake: str, datasets: Sequence[Ref]) -> tuple[Ref, ...]:
    """Return the datasets of mirrored latents, each checked to match its own dataset row by row."""
    found = []
    for ref, dataset in zip(datasets, config.datasets, strict=True):
        if dataset.mirrored is not None:
            mirrored = Lake(lake).version(dataset.mirrored)
            check_mirrored(Lake(lake).version(ref), mirrored)
            found.append(mirrored.ref)
    return tuple(found)
