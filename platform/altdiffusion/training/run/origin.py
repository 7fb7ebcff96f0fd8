"""What a run starts from: the model folders that its config names, or what the run before it brings."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from altdiffusion.diffusion.folder import LINEAGE, model_ref
from altdiffusion.diffusion.hub import located
from altdiffusion.errors import AltDiffusionError
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.checkpoints.format import Checkpoint
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.model.lora_start import located_adapters, start_adapters
from altdiffusion.training.run.record import read_record, run_named
from altdiffusion.training.run.starts import checked_digest, start_folder, unchanged_models


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a run starts from: folders, their references, and what of it enters the fingerprint."""

    base: str
    text_encoder: str | None
    teacher: str | None
    models: tuple[Ref, ...]
    content: Mapping[str, Any]
    start: Ref | None = None
    start_fingerprint: str | None = None
    lora_file: str | None = None
    lora_sha256: str | None = None

    def with_adapters(self, config: TrainConfig, lake: str) -> Origin:
        """Return the same start with the adapters that `start.lora` names, checked to be of the run's shape.

        Raises:
            AltDiffusionError: the file is missing or does not fit.
        """
        if config.start.lora is None or config.lora is None:
            return self
        file, sha256 = located_adapters(config.start.lora, lake)
        start_adapters(file, sha256, self.base, config.lora, config.trainable)
        name = re.sub(r"[^A-Za-z0-9._\-]", "-", posixpath.basename(file).removesuffix(".safetensors"))
        return replace(
            self,
            models=(*self.models, Ref("model", name or "adapter", sha256)),
            content={**self.content, "lora": sha256},
            lora_file=file,
            lora_sha256=sha256,
        )


def origin_of_config(config: TrainConfig, lake: str, record: Mapping[str, Any] | None) -> Origin:
    """Return the folders that a config names, fetched or converted where that is needed.

    Args:
        record: run.json of this run, where it has checkpoints.
    """
    base = start_folder(str(config.start.base), lake, "base", config.start.base_configs)
    text_encoder, teacher = _text_encoder(config, lake, record), _own_teacher(config, lake)
    folders = [folder for folder in (base, text_encoder, teacher) if folder is not None]
    digests = [checked_digest(folder) for folder in folders]
    models = tuple(model_ref(folder, digest) for folder, digest in zip(folders, digests, strict=True))
    return Origin(base=base, text_encoder=text_encoder, teacher=teacher, models=models, content={"models": digests})


def origin_of_run(
    config: TrainConfig,
    lake: str,
    earlier: Mapping[str, Any],
    continued: Checkpoint | None,
    record: Mapping[str, Any] | None,
) -> Origin:
    """Return what an earlier run brings, whose checkpoint is continued or started from.

    Args:
        earlier: the record of that run.
        continued: the checkpoint that is continued, or None where one is started from.
        record: run.json of this run, where it has checkpoints.
    """
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
    return Origin(
        base=earlier["base"],
        text_encoder=earlier["text_encoder"],
        teacher=teacher if teacher is not None else earlier.get("teacher"),
        models=models,
        content=content,
        start=start,
        start_fingerprint=start_fingerprint,
    )


def started_from(config: TrainConfig, lake: str) -> Mapping[str, Any]:
    """Return the record of the run that start.checkpoint names.

    Raises:
        AltDiffusionError: there is no such run, or its weights are not for this stage.
    """
    name = str(config.start.checkpoint)
    if name == config.run:
        raise AltDiffusionError(
            f"config of run {name}, key start.checkpoint", "names the run itself", "name the run of the stage before"
        )
    earlier = read_record(lake, name)
    if earlier is None:
        raise AltDiffusionError(
            f"run {name}, named by start.checkpoint of run {config.run}",
            f"is not in the lake {lake}",
            f"train it first; runs with checkpoints: {checkpoints.known_runs(lake)}",
        )
    if (earlier["stage"] == "distillation") != (config.stage == "distillation"):
        raise AltDiffusionError(
            f"run {name}, named by start.checkpoint of run {config.run}",
            f"is of stage {earlier['stage']}: stage {config.stage} cannot continue with its weights",
            f"give start.base and start.text_encoder: {name}"
            if earlier["stage"] == "distillation"
            else "name a run of the distillation stage, or give start.base and start.text_encoder",
        )
    return earlier


def _own_teacher(config: TrainConfig, lake: str) -> str | None:
    given = config.distillation.teacher if config.distillation is not None else None
    return located(given, lake, "text_encoder") if given else None


def _start_checkpoint(
    config: TrainConfig, lake: str, earlier: Mapping[str, Any], record: Mapping[str, Any] | None
) -> Ref:
    """Return the checkpoint that is started from: the same one at every restart."""
    name = str(config.start.checkpoint)
    if record is not None and record["start"] is not None:
        pinned = Ref.parse(record["start"])
        if checkpoints.run_and_step(pinned)[0] == name and record["start_fingerprint"] == earlier["fingerprint"]:
            return pinned
    found = checkpoints.latest_intact(lake, name)
    if found is None:
        raise AltDiffusionError(
            f"run {name}, named by start.checkpoint of run {config.run}", "has no checkpoint yet", "train it first"
        )
    return found.ref


def _text_encoder(config: TrainConfig, lake: str, record: Mapping[str, Any] | None) -> str | None:
    """Return the URI of the folder that start.text_encoder names: itself, or the export of a run of distillation, which
    is the same one at every restart."""
    given = config.start.text_encoder
    if given is None:
        return None
    earlier = run_named(lake, given)
    if earlier is None:
        # A student may begin with XLM-R, and keeps both heads of a published encoder: it is not converted.
        find = located if config.stage == "distillation" else start_folder
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
    found = checkpoints.latest_intact(lake, given)
    folder = files.join(exports, checkpoints.step_name(found.step)) if found is not None else None
    if folder is None or not files.exists(files.join(folder, LINEAGE)):
        raise AltDiffusionError(what, "has no export of a checkpoint", "run its job to the end: it exports them")
    return folder
