"""The networks of a run, with the weights that it starts from or continues with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from altdiffusion.config import from_dict
from altdiffusion.diffusion.models import ModelBundle, load_bundle
from altdiffusion.diffusion.scheduler import scheduler_for
from altdiffusion.diffusion.student import Student, load_student
from altdiffusion.diffusion.teacher import feature_width
from altdiffusion.diffusion.text_encoder import load_text_encoder
from altdiffusion.errors import AltDiffusionError
from altdiffusion.refs import Ref
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.checkpoints.format import Checkpoint, Warn
from altdiffusion.training.config import LoraConfig
from altdiffusion.training.config.distillation import TeacherOutput
from altdiffusion.training.model.lora import add_adapters, fuse, load_adapters
from altdiffusion.training.model.lora_start import start_adapters
from altdiffusion.training.run.record import read_record
from altdiffusion.training.run.resolved import ResolvedRun
from altdiffusion.training.run.run_name import check_checkpoint


def load_models(run: ResolvedRun, resume: Checkpoint | None = None) -> ModelBundle:
    """Return the models of a run in float32 on the CPU, with the weights it starts from or those of a checkpoint.

    Their scheduler defines what the run trains. A run of adapters has its adapters on the UNet, as peft wraps them. In
    the distillation stage the text encoder is the student in its current state.

    Args:
        resume: the run's own checkpoint, or the one that it continues.
    """
    bundle = load_bundle(run.base)
    if run.config.stage == "distillation":
        student, tokenizer = load_student_of(run, bundle, resume)
        return bundle.with_text_encoder(student.reader(), tokenizer)
    bundle = _behind(run, bundle)
    _begin(run, bundle.unet, checkpoints.UNET, resume)
    if run.config.lora is not None:
        add_adapters(bundle.unet, run.config.lora, run.config.trainable, run.seed)
        if resume is not None:
            load_adapters(bundle.unet, resume.tensors(checkpoints.LORA), f"checkpoint {resume.folder}")
        elif run.lora_file is not None:
            load_adapters(bundle.unet, _first_adapters(run), f"adapter {run.lora_file}")
    return bundle


def load_start(run: ResolvedRun) -> ModelBundle:
    """Return what a run begins with, as stock networks. Before the first update fresh adapters change nothing, so they
    are left out; those of `start.lora` are fused. A continued run begins with the averages of the checkpoint."""
    if run.continued is None and run.config.lora is None:
        return load_models(run)
    bundle = load_bundle(run.base)
    found = pinned(run.lake, run.continued) if run.continued is not None else None
    if run.config.stage == "distillation":
        student, tokenizer = load_student_of(run, bundle)
        if found is not None:
            load_weights(run.lake, student, found, "ema", checkpoints.TEXT_ENCODER)
        return bundle.with_text_encoder(student.reader(), tokenizer)
    bundle = _behind(run, bundle)
    if found is not None:
        load_weights(run.lake, bundle.unet, found, "ema")
    else:
        _begin(run, bundle.unet, checkpoints.UNET, None)
        if run.config.lora is not None and run.lora_file is not None:
            fuse(bundle.unet, _first_adapters(run), run.config.lora)
    return bundle


def _first_adapters(run: ResolvedRun) -> dict[str, Tensor]:
    """Return the adapters of the file that a run begins with."""
    assert run.lora_file is not None and run.lora_sha256 is not None and run.config.lora is not None
    return start_adapters(run.lora_file, run.lora_sha256, run.base, run.config.lora, run.config.trainable)


def load_student_of(run: ResolvedRun, base: ModelBundle, resume: Checkpoint | None = None) -> tuple[Student, Any]:
    """Return (student, its tokenizer) of a run of the distillation stage, in float32 on the CPU."""
    assert run.config.distillation is not None
    output = run.config.distillation.teacher_output
    student, tokenizer = new_student(str(run.text_encoder), run.teacher, output, base, run.seed)
    _begin(run, student, checkpoints.TEXT_ENCODER, resume)
    return student, tokenizer


def new_student(
    folder: str, teacher: str | None, output: TeacherOutput, base: ModelBundle, seed: int
) -> tuple[Student, Any]:
    """Return (student, its tokenizer) as a distillation begins: with two heads where there is a teacher of its own.

    Args:
        output: which of the teacher's vectors the student's feature learns.
    """
    return load_student(
        folder,
        context=int(base.unet.config.cross_attention_dim),
        feature=feature_width(teacher, output) if teacher is not None else None,
        tokens=int(base.tokenizer.model_max_length),
        seed=seed,
    )


def pinned(lake: str, ref: Ref) -> Checkpoint:
    """Return the checkpoint that a run was started from or continues, verified to be the same one.

    Raises:
        AltDiffusionError: it is missing or damaged, or was replaced by another one.
    """
    found = checkpoints.open_step(lake, *checkpoints.run_and_step(ref))
    if found.ref != ref:
        raise AltDiffusionError(
            ref.short,
            f"was replaced by one with digest {found.digest[:12]}",
            "use another run name to start from the new one",
        )
    return found


def newest(run: ResolvedRun, warn: Warn = lambda text: None) -> Checkpoint | None:
    """Return the checkpoint that a run continues from: its own newest complete one, else the one that it continues.

    None begins with its start.

    Raises:
        AltDiffusionError: its own checkpoint belongs to another config, or all are damaged.
    """
    found = checkpoints.latest_verified(run.lake, run.config.run, warn)
    if found is not None:
        check_checkpoint(run, found)
        return found
    return pinned(run.lake, run.continued) if run.continued is not None else None


def _behind(run: ResolvedRun, bundle: ModelBundle) -> ModelBundle:
    """Return a base with the run's text encoder, and with a scheduler that defines what the run trains."""
    if run.text_encoder is not None:
        bundle = bundle.with_text_encoder(*load_text_encoder(run.text_encoder))
    return replace(bundle, scheduler=scheduler_for(bundle.scheduler, run.noising))


def _begin(run: ResolvedRun, network: torch.nn.Module, file: str, resume: Checkpoint | None) -> None:
    """Load the weights of the checkpoint to continue from, or of the one that the run starts from, into a network."""
    if resume is not None and run.config.lora is None:
        load_weights(run.lake, network, resume, "raw", file)
    elif run.start is not None:
        load_weights(run.lake, network, pinned(run.lake, run.start), run.config.start.weights, file)


def load_weights(
    lake: str, network: torch.nn.Module, found: Checkpoint, weights: str, file: str = checkpoints.UNET
) -> None:
    """Load a checkpoint's averages (`ema`) or non-EMA weights (`raw`) into a UNet, or into a student by its file's
    name.

    A checkpoint of adapters does not hold whole weights: they are those of its start, with the adapters fused in.

    Args:
        network: as the run's base has it.

    Raises:
        AltDiffusionError: the checkpoint has another architecture, or the start of its adapters is missing.
    """
    settings = found.state()["config"].get("lora")
    if settings is not None:
        record = read_record(lake, found.run)
        if record is not None and record["start"] is not None:
            below = record["meaning"]["start"]["weights"]
            load_weights(lake, network, pinned(lake, Ref.parse(record["start"])), below, file)
        adapters = found.tensors(checkpoints.EMA if weights == "ema" else checkpoints.LORA)
        fuse(network, adapters, from_dict(LoraConfig, settings))
        return
    tensors = found.tensors(file)
    if weights == "ema":
        tensors.update(found.tensors(checkpoints.EMA))
    check_shapes(dict(network.state_dict()), tensors, f"checkpoint {found.folder}")
    network.load_state_dict(tensors)


def check_shapes(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors whose names or shapes are not exactly the wanted ones.

    Raises:
        AltDiffusionError: names the first tensor that differs.
    """
    wrong = sorted(wanted.keys() ^ given.keys()) or [
        name for name, tensor in wanted.items() if given[name].shape != tensor.shape
    ]
    if wrong:
        raise AltDiffusionError(
            what,
            f"does not fit this model: {len(wrong)} tensors are missing, unused or of another shape, like {wrong[0]}",
            "use the base model that the run was started from, or another run name",
        )
