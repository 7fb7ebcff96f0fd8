"""From a config to a run: every name in it pinned to a digest, and no run continued with another's config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from altdiffusion.config import from_dict, resolved, semantic
from altdiffusion.diffusion.folder import LINEAGE, model_ref, read_lineage
from altdiffusion.diffusion.models import ModelBundle, load_bundle
from altdiffusion.diffusion.student import Student, load_student
from altdiffusion.diffusion.teacher import projection_width
from altdiffusion.diffusion.text_encoder import load_text_encoder
from altdiffusion.errors import AltDiffusionError
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.training.checkpoints import checkpoint as checkpoints
from altdiffusion.training.checkpoints.checkpoint import Checkpoint
from altdiffusion.training.config import LoraConfig, TrainConfig
from altdiffusion.training.data.twins import check_twins
from altdiffusion.training.network.lora import add_adapters, fuse, load_adapters, require_peft
from altdiffusion.training.starts import absolute, checked_digest, fetched, start_folder

RECORD = "run.json"


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
    """The checkpoint whose weights it starts from, or None for the base's."""
    start_fingerprint: str | None
    """Fingerprint of the run of that checkpoint."""
    models: tuple[Ref, ...]
    """The model folders that it rests on."""
    mirrored: tuple[Ref, ...] = ()
    """Beside each dataset that of its mirrored pictures, where the run flips latents."""
    teacher: str | None = None
    """URI of the folder of a distillation's text tower with projection, or None for the base's own encoder."""

    @property
    def parents(self) -> tuple[Ref, ...]:
        """What a checkpoint of this run is made from."""
        return (*self.datasets, *self.mirrored, *((self.start,) if self.start is not None else self.models))

    def versions(self) -> list[Version]:
        """The datasets, open for reading."""
        return [Lake(self.lake).version(ref) for ref in self.datasets]

    def twins(self) -> dict[Ref, Version]:
        """By its dataset, the version of mirrored latents."""
        return {ref: Lake(self.lake).version(other) for ref, other in zip(self.datasets, self.mirrored, strict=False)}


def resolve(config: TrainConfig, lake: str) -> ResolvedRun:
    """Finds what the config names, and makes it a folder of the lake where it is none yet (training.starts). Reads
    manifests, and the model folders once for their digests.

    Raises:
        AltDiffusionError: something is missing, or the run's name belongs to a run with another config.
    """
    lake = absolute(lake)
    if config.lora is not None:
        require_peft()  # said here, before any worker starts
    datasets = tuple(Lake(lake).version(dataset.name).ref for dataset in config.datasets)
    record = read_record(lake, config.run)
    meaning = semantic(config)
    meaning["datasets"] = [
        {"ref": str(ref), "weight": dataset.weight} for ref, dataset in zip(datasets, config.datasets, strict=True)
    ]
    mirrored = _mirrored(config, lake, datasets)
    if mirrored:
        meaning["mirrored"] = [str(ref) for ref in mirrored]
    start: Ref | None = None
    start_fingerprint: str | None = None
    teacher = config.distillation.teacher if config.distillation is not None else None
    teacher = fetched(teacher, lake, "text_encoder") if teacher else None
    if config.start.checkpoint is not None:
        earlier, start = _start_checkpoint(config, lake, record)
        base, text_encoder, start_fingerprint = earlier["base"], earlier["text_encoder"], earlier["fingerprint"]
        models = tuple(Ref.parse(ref) for ref in earlier["models"])
        content: dict[str, Any] = {"checkpoint": str(start)}
        if teacher is None:
            teacher = earlier.get("teacher")
        else:
            content["teacher"] = checked_digest(teacher)
    else:
        base = start_folder(str(config.start.base), lake, "base")
        text_encoder = _text_encoder(config, lake, record)
        folders = [base, *([text_encoder] if text_encoder else []), *([teacher] if teacher else [])]
        digests = [checked_digest(folder) for folder in folders]
        models = tuple(model_ref(folder, digest) for folder, digest in zip(folders, digests, strict=True))
        content = {"models": digests}
    fingerprint = files.sha256_hex(files.canonical_json({"config": meaning, "start": content}))
    run = ResolvedRun(
        config=config,
        lake=lake,
        fingerprint=fingerprint,
        datasets=datasets,
        base=base,
        text_encoder=text_encoder,
        start=start,
        start_fingerprint=start_fingerprint,
        models=models,
        mirrored=mirrored,
        teacher=teacher,
    )
    _refuse_another(run, record)
    return run


def write_record(run: ResolvedRun) -> None:
    """Writes `<lake>/checkpoints/<run>/run.json`: what the name of the run stands for. Not part of any digest."""
    record = {
        "run": run.config.run,
        "stage": run.config.stage,
        "fingerprint": run.fingerprint,
        "datasets": [str(ref) for ref in run.datasets],
        "mirrored": [str(ref) for ref in run.mirrored],
        "base": run.base,
        "text_encoder": run.text_encoder,
        "student": _student(run.text_encoder),
        "teacher": run.teacher,
        "start": str(run.start) if run.start is not None else None,
        "start_fingerprint": run.start_fingerprint,
        "models": [str(ref) for ref in run.models],
        "meaning": semantic(run.config),
        "config": resolved(run.config),
    }
    uri = files.join(checkpoints.run_folder(run.lake, run.config.run), RECORD)
    files.write_atomic(uri, files.canonical_json(record))


def _student(text_encoder: str | None) -> str | None:
    """Ref of the checkpoint of distillation that a text encoder's folder was exported from, if it was."""
    return None if text_encoder is None else (read_lineage(text_encoder) or {}).get("checkpoint")


def read_record(lake: str, run: str) -> dict[str, Any] | None:
    """run.json of a run, or None before its first start."""
    try:
        record: dict[str, Any] = files.read_json(files.join(checkpoints.run_folder(lake, run), RECORD))
    except FileNotFoundError:
        return None
    return record


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
    """Refuses a checkpoint of another config; resume calls it with the newest verified one."""
    if found.config_fingerprint != run.fingerprint:
        what = f"stage {found.stage}" if found.stage != run.config.stage else "another config"
        raise _another(run, f"has checkpoints of {what} (fingerprint {found.config_fingerprint[:12]})")


def load_models(run: ResolvedRun, resume: Checkpoint | None = None) -> ModelBundle:
    """The models of a run in float32 on the CPU, with the weights it starts from or those of its own checkpoint.

    Of the distillation stage that is the base behind the student as it stands.
    """
    bundle = load_bundle(run.base)
    if run.config.stage == "distillation":
        student, tokenizer = load_student_of(run, bundle, resume)
        return bundle.with_text_encoder(student.reader(), tokenizer)
    if run.text_encoder is not None:
        bundle = bundle.with_text_encoder(*load_text_encoder(run.text_encoder))
    _begin(run, bundle.unet, checkpoints.UNET, resume)
    if run.config.lora is not None:
        add_adapters(bundle.unet, run.config.lora, run.config.trainable, run.config.seed)
        if resume is not None:
            load_adapters(bundle.unet, resume.tensors(checkpoints.LORA), f"checkpoint {resume.folder}")
    return bundle


def load_student_of(run: ResolvedRun, base: ModelBundle, resume: Checkpoint | None = None) -> tuple[Student, Any]:
    """(student, its tokenizer) of a run of the distillation stage, in float32 on the CPU."""
    student, tokenizer = new_student(str(run.text_encoder), run.teacher, base, run.config.seed)
    _begin(run, student, checkpoints.TEXT_ENCODER, resume)
    return student, tokenizer


def new_student(folder: str, teacher: str | None, base: ModelBundle, seed: int) -> tuple[Student, Any]:
    """(student, its tokenizer) as a distillation begins: of two heads where there is a teacher with a projection."""
    return load_student(
        folder,
        context=int(base.unet.config.cross_attention_dim),
        feature=projection_width(teacher) if teacher is not None else None,
        tokens=int(base.tokenizer.model_max_length),
        seed=seed,
    )


def _begin(run: ResolvedRun, network: torch.nn.Module, file: str, resume: Checkpoint | None) -> None:
    """Puts the weights of the run's own checkpoint, or of the one that it starts from, into what is trained."""
    if resume is not None and run.config.lora is None:
        load_weights(run.lake, network, resume, "raw", file)
    elif run.start is not None:
        load_weights(run.lake, network, _pinned(run.lake, run.start), run.config.start.weights, file)


def _pinned(lake: str, ref: Ref) -> Checkpoint:
    """The checkpoint that a run was started from, verified to be the same one."""
    name, _, step = ref.name.rpartition("/")
    found = checkpoints.open_step(lake, name, int(step.removeprefix("step-")))
    if found.ref != ref:
        raise AltDiffusionError(
            ref.short,
            f"was replaced by one with digest {found.digest[:12]}",
            "use another run name to start from the new one",
        )
    return found


def load_weights(
    lake: str, network: torch.nn.Module, found: Checkpoint, weights: str, file: str = checkpoints.UNET
) -> None:
    """Puts a checkpoint's weights (`ema` or `raw`) into a UNet, or a student by its file's name.

    A run of adapters has its own weights nowhere: they are what it started from, with the adapters fused into it.

    Args:
        network: as the run's base has it.

    Raises:
        AltDiffusionError: the checkpoint is of another architecture, or what its adapters belong to is gone.
    """
    settings = found.state()["config"].get("lora")
    if settings is not None:
        record = read_record(lake, found.run)
        if record is not None and record["start"] is not None:
            below = record["meaning"]["start"]["weights"]
            load_weights(lake, network, _pinned(lake, Ref.parse(record["start"])), below, file)
        adapters = found.tensors(checkpoints.EMA if weights == "ema" else checkpoints.LORA)
        fuse(network, adapters, from_dict(LoraConfig, settings))
        return
    tensors = found.tensors(file)
    if weights == "ema":
        tensors.update(found.tensors(checkpoints.EMA))
    check_shapes(dict(network.state_dict()), tensors, f"checkpoint {found.folder}")
    network.load_state_dict(tensors)


def check_shapes(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    """Refuses tensors whose names or shapes are not exactly the wanted ones."""
    wrong = sorted(wanted.keys() ^ given.keys()) or [
        name for name, tensor in wanted.items() if given[name].shape != tensor.shape
    ]
    if wrong:
        raise AltDiffusionError(
            what,
            f"does not fit this model: {len(wrong)} tensors are missing, unused or of another shape, like {wrong[0]}",
            "use the base model that the run was started from, or another run name",
        )


def _mirrored(config: TrainConfig, lake: str, datasets: Sequence[Ref]) -> tuple[Ref, ...]:
    """The datasets of mirrored latents, each checked to stand row by row beside its own."""
    found = []
    for ref, dataset in zip(datasets, config.datasets, strict=True):
        if dataset.mirrored is not None:
            twin = Lake(lake).version(dataset.mirrored)
            check_twins(Lake(lake).version(ref), twin)
            found.append(twin.ref)
    return tuple(found)


def _start_checkpoint(
    config: TrainConfig, lake: str, record: Mapping[str, Any] | None
) -> tuple[Mapping[str, Any], Ref]:
    """The record of the run that is started from, and the checkpoint: the same one at every restart."""
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
    if record is not None and record["start"] is not None:
        pinned = Ref.parse(record["start"])
        if pinned.name.rpartition("/")[0] == name and record["start_fingerprint"] == earlier["fingerprint"]:
            return earlier, pinned
    found = checkpoints.latest_verified(lake, name)
    if found is None:
        raise AltDiffusionError(
            f"run {name}, named by start.checkpoint of run {config.run}", "has no checkpoint yet", "train it first"
        )
    return earlier, found.ref


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
    if record["stage"] != run.config.stage:
        problem = f"belongs to a run of stage {record['stage']}, this config is of stage {run.config.stage}"
        raise _another(run, problem)
    changed = _differences(record["meaning"], semantic(run.config))
    if [str(ref) for ref in run.datasets] != record["datasets"]:
        changed.append(f"datasets (it was started with {', '.join(record['datasets'])})")
    raise _another(run, f"belongs to a run with another {' and '.join(changed) or 'start model'}")


def _another(run: ResolvedRun, problem: str) -> AltDiffusionError:
    return AltDiffusionError(
        f"run name {run.config.run!r}",
        problem,
        "give this config another run name, or restore the config to continue that run "
        "(a dataset is kept at a version by name@digest)",
    )


def _differences(before: Any, now: Any, key: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        found: list[str] = []
        for name in sorted(before.keys() | now.keys()):
            found += _differences(before.get(name), now.get(name), f"{key}.{name}" if key else str(name))
        return found
    if isinstance(before, Sequence) and isinstance(now, (list, tuple)) and list(before) == list(now):
        return []
    return [] if before == now else [f"{key} ({before!r}, now {now!r})"]
