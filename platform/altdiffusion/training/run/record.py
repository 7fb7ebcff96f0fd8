"""run.json: what the name of a run means. It is not part of any digest.

It is written after everything that the run needs was loaded and checked, so a start that fails leaves the name free.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from altdiffusion.config import from_dict, resolved
from altdiffusion.diffusion.folder import read_lineage
from altdiffusion.diffusion.hub import absolute
from altdiffusion.diffusion.objective import Noising
from altdiffusion.errors import AltDiffusionError
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.documents import Document, optional_document
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.checkpoints.format import is_windows
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.run.resolved import ResolvedRun

RECORD = "run.json"
_OWN_FOLDER = re.compile(r"/(models/[^/]+|exports/[^/]+/[^/]+)/?$")
_CHECKPOINT = re.compile(r"checkpoint:[A-Za-z0-9][A-Za-z0-9._\-]*/step-[0-9]{1,18}@[0-9a-f]{64}")


def write_record(run: ResolvedRun) -> None:
    """Write `<lake>/checkpoints/<run>/run.json`."""
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
        "meaning": dict(run.meaning),
        "config": resolved(run.config),
        "noising": asdict(run.noising),
        **({"continued": str(run.continued)} if run.continued is not None else {}),
        **run.key.record(),
    }
    uri = files.join(checkpoints.run_folder(run.lake, run.config.run), RECORD)
    files.write_atomic(uri, files.canonical_json(record))


def run_named(lake: str, given: str) -> dict[str, Any] | None:
    """Return run.json of the run that a start names in place of a model folder, or None where it names no run."""
    return read_record(lake, given) if "/" not in given else None


def read_record(lake: str, run: str) -> dict[str, Any] | None:
    """Return run.json of a run, or None before its first start.

    Raises:
        AltDiffusionError: a value in it is not usable: it is read from a lake to which others may write.
    """
    document = optional_document(files.within(checkpoints.run_folder(lake, run), RECORD))
    if document is None:
        return None
    if document.text("run") != run:
        raise document.wrong("run", repr(run))
    for key in ("stage", "fingerprint", "base"):
        document.text(key)
    for key in ("text_encoder", "teacher", "student", "start_fingerprint"):
        if document.value.get(key) is not None:
            document.text(key)
    for key in ("start", "continued", "student"):
        if document.value.get(key) is not None:
            document.text(key, _CHECKPOINT, needed="a checkpoint, checkpoint:RUN/step-N@digest")
    document.refs("datasets"), document.refs("models")
    if "mirrored" in document.value:
        document.refs("mirrored")
    document.object("config")
    _check_meaning(document.object("meaning"))
    if document.value.get("start") is not None:
        document.object("meaning").object("start").text("weights")
    if "noising" in document.value:
        _check_noising(document.object("noising"))
    elif began_before_noising(document.value):
        objective = document.object("meaning").object("objective")
        objective.text("prediction"), objective.flag("zero_terminal_snr")
    return {**document.value, **_models_here(lake, document.value)}


def _models_here(lake: str, record: Mapping[str, Any]) -> dict[str, str]:
    """Return the model folders of a run that are in this lake by now, since it was moved or copied.

    A folder counts as moved if it is gone and this lake has the same one. Its content is checked where it is used.
    """
    found = {}
    for key in ("base", "text_encoder", "teacher"):
        folder = str(record.get(key) or "")
        tail = _OWN_FOLDER.search(folder)
        if tail is not None and not files.exists(folder):
            here = files.join(absolute(lake), tail[1])
            if files.exists(here):
                found[key] = here
    return found


def needed_by_others(lake: str, run: str) -> set[int]:
    """Return the steps of a run that other runs started from or continue: each of their starts opens them again.

    Raises:
        AltDiffusionError: the record of a run cannot be read, so it is not known what it needs.
    """
    found: set[int] = set()
    for other in checkpoints.run_names(lake):
        record = read_record(lake, other) if other != run else None
        for key in ("start", "continued"):
            text = record.get(key) if record is not None else None
            if text is not None:
                name, step = checkpoints.run_and_step(Ref.parse(text))
                if name == run:
                    found.add(step)
    return found


def _check_meaning(meaning: Document) -> None:
    """Check those of a run's settings that other runs, exports and cards read from its record."""
    value = meaning.value
    meaning.count("seed"), meaning.count("global_batch"), meaning.text("trainable")
    for key, inner, kind in (
        ("objective", "prediction", Document.text),
        ("objective", "zero_terminal_snr", Document.flag),
        ("start", "weights", Document.text),
    ):
        if value.get(key) is not None and meaning.object(key).value.get(inner) is not None:
            kind(meaning.object(key), inner)
    if value.get("lora") is not None:
        meaning.object("lora")
    if "datasets" in value:
        list(meaning.objects("datasets"))
    if "guards" in value and not is_windows(windows := meaning.object("guards").value.get("skip_batches", [])):
        raise meaning.wrong("guards", f"a list of pairs of counts, not {str(windows)[:80]}, for skip_batches")


def _check_noising(noising: Document) -> None:
    """Check that a record's noising is valid."""
    if noising.value.keys() != {field.name for field in fields(Noising)}:
        raise AltDiffusionError(
            f"file {noising.uri}, noising", "is damaged: it has other keys than a noising", "restore it from a copy"
        )
    for key in ("prediction", "beta_schedule"):
        noising.text(key)
    noising.flag("zero_terminal_snr"), noising.count("num_train_timesteps")
    noising.number("beta_start"), noising.number("beta_end")
    betas = noising.value["trained_betas"]
    if betas is not None and not (betas and isinstance(betas, list) and all(isinstance(b, float) for b in betas)):
        raise noising.wrong("trained_betas", "a list of numbers")


def config_of(record: Mapping[str, Any]) -> TrainConfig:
    """Return the config that a run was started with."""
    return from_dict(TrainConfig, record["config"], f"{RECORD} of run {record['run']}")


def noising_of(record: Mapping[str, Any]) -> Noising:
    """Return what a run trains its UNet to predict, and under which schedule.

    Runs of earlier versions trained under Stable Diffusion's schedule, whatever their base's.
    """
    if "noising" in record:
        return Noising.from_json(record["noising"])
    objective = record["meaning"]["objective"]
    return Noising(prediction=objective["prediction"], zero_terminal_snr=bool(objective["zero_terminal_snr"]))


def began_before_noising(record: Mapping[str, Any]) -> bool:
    """Return whether a run was begun by an earlier version, which ignored what its base was trained with."""
    return "noising" not in record and record["stage"] != "distillation"


def _student(text_encoder: str | None) -> str | None:
    """Return the checkpoint of distillation that a text encoder's folder was exported from, if it was."""
    return None if text_encoder is None else (read_lineage(text_encoder) or {}).get("checkpoint")
