"""From a config to a run: every name in it pinned to a digest, and no run continued with another's config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from altdiffusion.config import from_dict, semantic
from altdiffusion.diffusion.folder import LINEAGE, model_ref
from altdiffusion.diffusion.objective import SD, Noising
from altdiffusion.errors import AltDiffusionError
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.checkpoints.format import Checkpoint
from altdiffusion.training.config import StartConfig, TrainConfig
from altdiffusion.training.model.lora import require_peft
from altdiffusion.training.order.mirrored import check_twins
from altdiffusion.training.order.run_key import SEED_ALONE, RunKey
from altdiffusion.training.run.continuing import check_overrides, differences, find_continued
from altdiffusion.training.run.fit import Parties, check_fit
from altdiffusion.training.run.record import read_record
from altdiffusion.training.run.starts import (
    absolute,
    checked_digest,
    fetched,
    start_folder,
    unchanged_models,
)


@dataclass(frozen=True, kw_only=True)
class ResolvedRun:
    """A config with everything it names found and pinned. It is small and pickles: workers get it whole."""

    config: TrainConfig
    lake: str
    fingerprint: str
    """SHA-256 (hex) over what decides the result: semantic config, datasets' digests, content of the start."""
    datasets: tuple[Ref, ...]
    base: str
    """URI of the model folder that brings VAE, scheduler and the UNet's shape."""
    text_encoder: str | None
    """URI of the folder of another text encoder, or None for the base's."""
    start: Ref | None
    """The checkpoint whose weights it starts from, or None for the base's; of a continued run that run's."""
    start_fingerprint: str | None
    """Fingerprint of the run of that checkpoint."""
    models: tuple[Ref, ...]
    """The model folders that it rests on."""
    mirrored: tuple[Ref, ...] = ()
    """Beside each dataset that of its mirrored images, where the run flips latents."""
    teacher: str | None = None
    """URI of the folder of a distillation's text tower with projection, or None for the base's own encoder."""
    continued: Ref | None = None
    """The checkpoint that it goes on from with everything, or None: it begins at step 0."""
    key: RunKey = SEED_ALONE
    """Of all its draws."""
    noising: Noising = SD
    """What the UNet learns to answer, and under which noise schedule."""
    meaning: Mapping[str, Any] = field(default_factory=dict)
    """The settings of the config that decide the result."""

    @property
    def seed(self) -> int:
        """The seed of all its draws, with the key in it."""
        return self.key.seed(self.config.seed)

    @property
    def parents(self) -> tuple[Ref, ...]:
        """What a checkpoint of this run is made from."""
        origin = self.continued or self.start
        return (*self.datasets, *self.mirrored, *((origin,) if origin is not None else self.models))

    def versions(self) -> list[Version]:
        """The datasets, open for reading."""
        return [Lake(self.lake).version(ref) for ref in self.datasets]

    def twins(self) -> dict[Ref, Version]:
        """By its dataset, the version of mirrored latents."""
        return {ref: Lake(self.lake).version(other) for ref, other in zip(self.datasets, self.mirrored, strict=False)}


def resolve(config: TrainConfig, lake: str) -> ResolvedRun:
    """Find what a config names, make it a folder of the lake where it is not one yet (training.run.starts), and check
    that all of it fits (training.run.fit). Reads manifests, a few rows, and the model folders once for their digests.

    Raises:
        AltDiffusionError: something is missing or does not fit, or the run's name belongs to a run with another config.
    """
    lake = absolute(lake)
    if config.lora is not None:
        require_peft()  # said here, before any worker starts
    versions = [Lake(lake).version(dataset.name) for dataset in config.datasets]
    refs = tuple(version.ref for version in versions)
    refuse_twice(config, refs)
    record = _own_record(config, lake)
    if record is not None and record["stage"] != config.stage:
        raise _another(config, f"belongs to a run of stage {record['stage']}, this config is of stage {config.stage}")
    key = _key_of(config, lake, record)
    continued: Checkpoint | None = None
    earlier: Mapping[str, Any] | None = None
    if config.continue_from is not None:
        earlier, continued = find_continued(config, lake)
        key = RunKey.read(earlier, f"run.json of run {earlier['run']}")
        config = replace(config, start=_start_of(config, earlier, lake))
    elif config.start.checkpoint is not None:
        earlier = _started_from(config, lake)
    if config.online is not None and config.online.seed is None and key.format == 1:
        config = replace(config, online=replace(config.online, seed=0))  # what null stood for
    mirrored = _mirrored(config, lake, refs)
    if earlier is not None:
        origin = _origin_of_run(config, lake, earlier, continued, record)
    else:
        origin = _origin(config, lake, record)
    noising = check_fit(
        Parties(
            config=config,
            lake=lake,
            base=origin.base,
            text_encoder=origin.text_encoder,
            teacher=origin.teacher,
            earlier=earlier,
            own=record,
            versions=versions,
        )
    )
    objective = replace(config.objective, prediction=noising.prediction, zero_terminal_snr=noising.zero_terminal_snr)
    config = replace(config, objective=objective)
    meaning = _meaning(config, origin.teacher)
    if continued is not None:
        assert earlier is not None
        check_overrides(config, meaning, earlier, continued, [str(ref) for ref in refs])
    decides = meaning | {
        "datasets": [
            {"ref": str(ref), "weight": dataset.weight} for ref, dataset in zip(refs, config.datasets, strict=True)
        ]
    }
    if mirrored:
        decides["mirrored"] = [str(ref) for ref in mirrored]
    fingerprint = files.sha256_hex(files.canonical_json({"config": decides, "start": origin.content, **key.record()}))
    run = ResolvedRun(
        config=config,
        lake=lake,
        fingerprint=fingerprint,
        datasets=refs,
        base=origin.base,
        text_encoder=origin.text_encoder,
        start=origin.start,
        start_fingerprint=origin.start_fingerprint,
        models=origin.models,
        mirrored=mirrored,
        teacher=origin.teacher,
        continued=continued.ref if continued is not None else None,
        key=key,
        noising=noising,
        meaning=meaning,
    )
    _refuse_another(run, record)
    return run


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """What a run starts from: folders, their references, and what of it enters the fingerprint."""

    base: str
    text_encoder: str | None
    teacher: str | None
    models: tuple[Ref, ...]
    content: Mapping[str, Any]
    start: Ref | None = None
    start_fingerprint: str | None = None


def _origin(config: TrainConfig, lake: str, record: Mapping[str, Any] | None) -> _Origin:
    """The folders that a config names, fetched or converted where that is needed."""
    base = start_folder(str(config.start.base), lake, "base")
    text_encoder, teacher = _text_encoder(config, lake, record), _own_teacher(config, lake)
    folders = [folder for folder in (base, text_encoder, teacher) if folder is not None]
    digests = [checked_digest(folder) for folder in folders]
    models = tuple(model_ref(folder, digest) for folder, digest in zip(folders, digests, strict=True))
    return _Origin(base=base, text_encoder=text_encoder, teacher=teacher, models=models, content={"models": digests})


def _origin_of_run(
    config: TrainConfig,
    lake: str,
    earlier: Mapping[str, Any],
    continued: Checkpoint | None,
    record: Mapping[str, Any] | None,
) -> _Origin:
    """What an earlier run brings, whose checkpoint is continued or started from."""
    teacher, models = _own_teacher(config, lake), unchanged_models(earlier)
    if continued is not None:
        start = Ref.parse(earlier["start"]) if earlier["start"] is not None else None
        start_fingerprint = earlier["start_fingerprint"]
        content = {"continued": str(continued.ref)}
    else:
        start = _start_checkpoint(config, lake, earlier, record)
        start_fingerprint = earlier["fingerprint"]
        content = {"checkpoint": str(start)}
    if teacher is not None and continued is None:
        content["teacher"] = checked_digest(teacher)
    elif teacher is not None and model_ref(teacher, checked_digest(teacher)).digest not in {m.digest for m in models}:
        raise AltDiffusionError(
            f"config of run {config.run}, key distillation.teacher",
            f"is not the teacher of run {earlier['run']}, which it continues",
            "leave it out: the checkpoint brings it",
        )
    return _Origin(
        base=earlier["base"],
        text_encoder=earlier["text_encoder"],
        teacher=teacher if teacher is not None else earlier.get("teacher"),
        models=models,
        content=content,
        start=start,
        start_fingerprint=start_fingerprint,
    )


def _own_teacher(config: TrainConfig, lake: str) -> str | None:
    given = config.distillation.teacher if config.distillation is not None else None
    return fetched(given, lake, "text_encoder") if given else None


def refuse_twice(config: TrainConfig, refs: Sequence[Ref]) -> None:
    """Refuse datasets of which two are one version: as parts of a mixture they would be drawn alike, and no row of it
    would have the share that its weight says.

    Raises:
        AltDiffusionError: names both places.
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


def _own_record(config: TrainConfig, lake: str) -> dict[str, Any] | None:
    """run.json of this run where there is a checkpoint that it speaks of: without one, its name is free."""
    return read_record(lake, config.run) if checkpoints.steps(lake, config.run) else None


def _key_of(config: TrainConfig, lake: str, record: Mapping[str, Any] | None) -> RunKey:
    """The key that the run began with, or a new run's."""
    if record is not None:
        return RunKey.read(record, f"run.json of run {config.run}")
    if checkpoints.steps(lake, config.run):
        found = checkpoints.latest_verified(lake, config.run)  # its run.json was lost
        if found is not None:
            return RunKey.read(found.state(), f"checkpoint {found.folder}, file {checkpoints.STATE}")
    return RunKey.of(config)


def _meaning(config: TrainConfig, teacher: str | None) -> dict[str, Any]:
    """What decides the result of a run. Settings that came later are left out where they say what was the case before,
    so that runs of earlier versions keep their fingerprints."""
    meaning = semantic(config)
    for name in ("key", "continue_from"):
        if meaning[name] is None:
            del meaning[name]
    settings = meaning["distillation"]
    if settings is not None and (teacher is None or settings["teacher_output"] == "projected"):
        del settings["teacher_output"]
    return meaning


def _start_of(config: TrainConfig, earlier: Mapping[str, Any], lake: str) -> StartConfig:
    """What the run that is continued was started from; where the config names it as well, the same."""
    given, before = config.start, from_dict(StartConfig, earlier["config"]["start"])
    named = (given.base, given.text_encoder, given.checkpoint)
    if named == (None, None, None):
        return before
    models = iter(earlier["models"])
    wrong = (given.checkpoint, given.weights) != (before.checkpoint, before.weights)
    for uri, part in ((given.base, "base"), (given.text_encoder, "text_encoder")):
        if uri is not None and not wrong:
            folder = start_folder(uri, lake, part)  # type: ignore[arg-type]
            found = model_ref(folder, checked_digest(folder))
            wrong = found.digest != Ref.parse(next(models, str(found))).digest
    if wrong:
        raise AltDiffusionError(
            f"config of run {config.run}, key start",
            f"is not what run {earlier['run']} was started from, which it continues",
            "leave start out: the checkpoint brings all of it",
        )
    return before


def finished(config: TrainConfig, lake: str) -> Checkpoint | None:
    """The newest verified checkpoint of a run that has reached `config.steps`; None while there is work to do.

    Raises:
        AltDiffusionError: the run's name belongs to a run with another config.
    """
    run = resolve(config, lake)
    found = checkpoints.latest_verified(run.lake, config.run)
    if found is None:
        return None
    check_checkpoint(run, found)
    return found if found.step >= config.steps else None


def check_checkpoint(run: ResolvedRun, found: Checkpoint) -> None:
    """Refuse a checkpoint of another config; resume calls it with the newest verified one."""
    if found.config_fingerprint != run.fingerprint:
        what = f"stage {found.stage}" if found.stage != run.config.stage else "another config"
        raise _another(run.config, f"has checkpoints of {what} (fingerprint {found.config_fingerprint[:12]})")


def _mirrored(config: TrainConfig, lake: str, datasets: Sequence[Ref]) -> tuple[Ref, ...]:
    """The datasets of mirrored latents, each checked to stand row by row beside its own."""
    found = []
    for ref, dataset in zip(datasets, config.datasets, strict=True):
        if dataset.mirrored is not None:
            twin = Lake(lake).version(dataset.mirrored)
            check_twins(Lake(lake).version(ref), twin)
            found.append(twin.ref)
    return tuple(found)


def _started_from(config: TrainConfig, lake: str) -> Mapping[str, Any]:
    """The record of the run that start.checkpoint names."""
    name = str(config.start.checkpoint)
    if name == config.run:
        raise AltDiffusionError(
            f"config of run {name}, key start.checkpoint", "names the run itself", "name the run of the stage before"
        )
    earlier = read_record(lake, name)
    if earlier is None:
        known = ", ".join(checkpoints.run_names(lake)) or "none"
        raise AltDiffusionError(
            f"run {name}, named by start.checkpoint of run {config.run}",
            f"is not in the lake {lake}",
            f"train it first; runs with checkpoints: {known}",
        )
    if (earlier["stage"] == "distillation") != (config.stage == "distillation"):
        raise AltDiffusionError(
            f"run {name}, named by start.checkpoint of run {config.run}",
            f"is of stage {earlier['stage']}: stage {config.stage} cannot go on with its weights",
            f"give start.base and start.text_encoder: {name}"
            if earlier["stage"] == "distillation"
            else "name a run of the distillation stage, or give start.base and start.text_encoder",
        )
    return earlier


def _start_checkpoint(
    config: TrainConfig, lake: str, earlier: Mapping[str, Any], record: Mapping[str, Any] | None
) -> Ref:
    """The checkpoint that is started from: the same one at every restart."""
    name = str(config.start.checkpoint)
    if record is not None and record["start"] is not None:
        pinned = Ref.parse(record["start"])
        if pinned.name.rpartition("/")[0] == name and record["start_fingerprint"] == earlier["fingerprint"]:
            return pinned
    found = checkpoints.latest_verified(lake, name)
    if found is None:
        raise AltDiffusionError(
            f"run {name}, named by start.checkpoint of run {config.run}", "has no checkpoint yet", "train it first"
        )
    return found.ref


def _text_encoder(config: TrainConfig, lake: str, record: Mapping[str, Any] | None) -> str | None:
    """URI of the folder that start.text_encoder names: itself, or the export of a run of distillation, at every
    restart the same."""
    given = config.start.text_encoder
    if given is None:
        return None
    earlier = read_record(lake, given) if "/" not in given else None
    if earlier is None:
        # A student may begin with XLM-R, and keeps both heads of a published encoder: it is not converted.
        find = fetched if config.stage == "distillation" else start_folder
        return find(given, lake, "text_encoder")
    what = f"run {given}, named by start.text_encoder of run {config.run}"
    if earlier["stage"] != "distillation" or given == config.run:
        raise AltDiffusionError(
            what,
            f"is of stage {earlier['stage']} and trains no text encoder",
            "name a run of the distillation stage, or the folder of a text encoder",
        )
    exports = files.join(lake, "exports", given)
    pinned = record["text_encoder"] if record is not None else None
    if pinned is not None and pinned.startswith(exports + "/"):
        return str(pinned)
    found = checkpoints.latest_verified(lake, given)
    folder = files.join(exports, checkpoints.step_name(found.step)) if found is not None else None
    if folder is None or not files.exists(files.join(folder, LINEAGE)):
        raise AltDiffusionError(what, "has no export of a checkpoint", "run its job to the end: it exports them")
    return folder


def _refuse_another(run: ResolvedRun, record: Mapping[str, Any] | None) -> None:
    if record is None or record["fingerprint"] == run.fingerprint:
        return
    changed = [f"{key} ({before!r}, now {now!r})" for key, before, now in differences(record["meaning"], run.meaning)]
    if [str(ref) for ref in run.datasets] != record["datasets"]:
        changed.append(f"datasets (it was started with {', '.join(record['datasets'])})")
    raise _another(run.config, f"belongs to a run with another {' and '.join(changed) or 'start model'}")


def _another(config: TrainConfig, problem: str) -> AltDiffusionError:
    return AltDiffusionError(
        f"run name {config.run!r}",
        problem,
        "give this config another run name, restore the config to continue that run (a dataset is kept at a version by "
        "name@digest), or go on from one of its checkpoints with other settings by continue_from: RUN@STEP",
    )
