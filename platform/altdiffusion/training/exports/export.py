"""From a checkpoint to a folder that stock programs open: diffusers, A1111, ComfyUI (exports.formats)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from altdiffusion.config import from_dict
from altdiffusion.diffusion.folder import CARD, content_digest, publish, read_lineage
from altdiffusion.diffusion.models import ModelBundle, load_bundle, save_bundle
from altdiffusion.diffusion.scheduler import scheduler_for
from altdiffusion.diffusion.text_encoder import load_text_encoder
from altdiffusion.errors import AltDiffusionError
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.checkpoints.format import Checkpoint, Warn
from altdiffusion.training.config import LoraConfig
from altdiffusion.training.exports.card import model_card
from altdiffusion.training.exports.formats import (
    Format,
    Precision,
    Shape,
    file_stem,
    refuse_without_adapters,
    write_adapters,
    write_model,
)
from altdiffusion.training.run.record import noising_of, read_record
from altdiffusion.training.run.resolved import ResolvedRun
from altdiffusion.training.run.starts import unchanged_models
from altdiffusion.training.weights import load_start, load_weights, new_student

Weights = Literal["ema", "raw"]


def export_checkpoint(
    lake: str,
    run: str,
    *,
    step: int | None = None,
    weights: Weights = "ema",
    warn: Warn = lambda text: None,
    digest: str = "",
    format: Format = "diffusers",
    dtype: Precision = "fp32",
) -> str:
    """Write `<lake>/exports/<run>/step-<n>/`, or `step-<n>-raw/` for non-EMA weights; a whole export is left alone.

    VAE, text encoder, tokenizer and scheduler are those that the run was trained with. `lineage.json`, written last,
    names the checkpoint, the datasets of its run and of the runs before it, and the digest of the folder's content.
    `README.md` is its model card (exports.card). In the export of a run of adapters, the UNet has them fused into it;
    `pytorch_lora_weights.safetensors` next to it holds the adapters alone.

    Args:
        step: a checkpoint's step; by default that of the newest verified one.
        weights: the averages (`ema`), or the non-EMA weights (`raw`).
        digest: beginning of the checkpoint's digest, which is compared; empty is any.
        format: another one than a model folder (exports.formats), which has a folder of its own, `step-<n>-<format>`.
        dtype: type of the tensors; `fp16` has a folder of its own as well.

    Returns:
        URI of the folder.

    Raises:
        AltDiffusionError: there is no such checkpoint, the run has no adapters to export, what it rests on was
            changed, or its weights are not finite in the dtype.
    """
    shape = Shape(weights=weights, format=format, dtype=dtype)
    record = read_record(lake, run)
    settings = record["meaning"].get("lora") if record is not None else None
    if record is not None:
        refuse_without_adapters(shape, run, settings)
    found = checkpoints.open_step(lake, run, step) if step is not None else checkpoints.latest_verified(lake, run, warn)
    if found is None or record is None:
        raise AltDiffusionError(
            f"run {run}", f"has no checkpoint in {lake}", f"train it first; runs here: {checkpoints.known_runs(lake)}"
        )
    found.check_digest(digest)
    target = files.within(lake, "exports", run, checkpoints.step_name(found.step) + shape.suffix)
    lineage = _lineage(lake, found, shape)
    if _present(target, lineage):
        renew_card(lake, target)
        return target
    adapters = None
    if settings is not None:
        adapters = found.tensors(checkpoints.EMA if weights == "ema" else checkpoints.LORA)
    bundle = None if shape.adapters_alone else _model_of(lake, record, found, weights)
    stem, what = file_stem(lineage), f"checkpoint {found.ref.short}"

    def write(folder: Path) -> None:
        if bundle is not None:
            write_model(folder, bundle, shape, stem, what)
        if adapters is not None and settings is not None and shape.format != "single-file":
            write_adapters(folder, adapters, from_dict(LoraConfig, settings), shape, stem, what)

    publish(target, write, lineage)
    renew_card(lake, target)
    return target


def _model_of(lake: str, record: Mapping[str, Any], found: Checkpoint, weights: Weights) -> ModelBundle:
    """Return the whole model of a checkpoint, in float32 on the CPU."""
    unchanged_models(record)
    bundle = load_bundle(record["base"])
    if record["stage"] == "distillation":
        output = record["config"]["distillation"].get("teacher_output", "projected")  # older runs have no setting
        student, tokenizer = new_student(
            record["text_encoder"], record["teacher"], output, bundle, record["meaning"]["seed"]
        )
        load_weights(lake, student, found, weights, checkpoints.TEXT_ENCODER)
        return bundle.with_text_encoder(student.reader(), tokenizer)
    if record["text_encoder"] is not None:
        bundle = bundle.with_text_encoder(*load_text_encoder(record["text_encoder"]))
    load_weights(lake, bundle.unet, found, weights)
    return replace(bundle, scheduler=scheduler_for(bundle.scheduler, noising_of(record)))


def renew_card(lake: str, folder: str) -> None:
    """Write an export's README.md from what the lake holds now: an evaluation may have been added since. A folder that
    is not an export of a checkpoint is left alone."""
    lineage = read_lineage(folder)
    if lineage is None or "checkpoint" not in lineage or "content" not in lineage:
        return
    uri, card = files.within(folder, CARD), model_card(lake, lineage).encode()
    if not files.exists(uri) or files.read_bytes(uri) != card:
        files.write_atomic(uri, card)


def export_start(run: ResolvedRun) -> str:
    """Write what a run starts from, its text encoder already replaced, as `<lake>/exports/<run>/step-00000000/`.

    It is step 0 of the run's samples and the row "swapped" of the evaluation.
    """
    target = files.within(run.lake, "exports", run.config.run, checkpoints.step_name(0))
    first = run.continued or run.start
    origin = [first] if first is not None else run.models
    lineage: dict[str, Any] = {
        "run": run.config.run,
        "step": 0,
        "stage": run.config.stage,
        "weights": "start",
        "parents": [str(ref) for ref in origin],
    }
    if run.config.lora is not None:
        # earlier versions wrote them in, under peft's names: such exports are replaced
        lineage["adapters"] = "left out" if run.lora_sha256 is None else f"of start.lora {run.lora_sha256}, fused"
    if not _present(target, lineage):
        bundle = load_start(run)
        publish(target, lambda folder: save_bundle(bundle, folder), lineage)
    return target


def _lineage(lake: str, found: Checkpoint, shape: Shape) -> dict[str, Any]:
    """Return what the export is made of: its checkpoint, and everything that went into the runs up to it."""
    datasets: list[str] = []
    models: list[str] = []
    waiting = list(found.parents)
    seen: set[str] = set()
    while waiting:
        text = waiting.pop(0)
        if text in seen:
            continue
        seen.add(text)
        ref = Ref.parse(text)
        if ref.kind == "dataset":
            datasets.append(text)
        elif ref.kind == "model":
            models.append(text)
        elif ref.kind == "checkpoint":
            record = read_record(lake, checkpoints.run_and_step(ref)[0])
            if record is not None:
                origin = record.get("continued") or record["start"]
                waiting += [*record["datasets"], *([origin] if origin else record["models"])]
    return {
        "checkpoint": str(found.ref),
        "run": found.run,
        "step": found.step,
        "stage": found.stage,
        **shape.lineage,
        "parents": [str(found.ref)],
        "datasets": datasets,
        "models": models,
    }


def _present(target: str, lineage: dict[str, Any]) -> bool:
    present = read_lineage(target)
    if present is None:
        return False
    content = present.pop("content", None)
    return bool(present == lineage and content == content_digest(target))
