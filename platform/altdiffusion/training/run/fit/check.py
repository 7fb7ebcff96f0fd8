"""Whether the parties of a run fit together: base, the run before it, text encoder, data and config.

Parties that do not fit train without an error, and the result draws noise. So every party states facts, each under a
name and with its place. A name has one value, or the run is refused with an error that names both values and both
places. What the config leaves open (what the UNet predicts, whether the last step holds signal) is inherited from what
the run starts from.

| fact | stated by |
|---|---|
| what the UNet predicts, signal of its last step | base (scheduler) or the run before; config (objective) |
| noise schedule | base (scheduler), the run before |
| latent channels | UNet (in and out), VAE, dataset (rows, and the VAE that made it) |
| scaling and shift of latents, encoder of the VAE | base (vae), dataset (what encode noted of its VAE) |
| width of the text vectors | UNet, text encoder |
| token positions | tokenizer, dataset; and the encoder's positions, which must suffice |
| token ids | tokenizer, dataset (some captions are tokenized again) |
| pixels and shape of latents | dataset (config, rows), the other datasets, config (online); the UNet must halve them |
| teacher's vector | the run before, config (distillation) |

`resolve` checks all of it; the dry run checks what is available.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from altdiffusion.diffusion.objective import SD, Noising
from altdiffusion.diffusion.quiet import quiet_libraries
from altdiffusion.diffusion.scheduler import CONFIG, read_noising
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage.dataset import Version
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.data.token_check import TokenColumn, check_token_ids
from altdiffusion.training.run.fit.facts import Facts
from altdiffusion.training.run.fit.latent_facts import check_halves, first_row, state_autoencoders
from altdiffusion.training.run.fit.model_facts import load_tokenizer, state_unet, state_vae, text_shape
from altdiffusion.training.run.record import began_before_noising, noising_of


@dataclass(frozen=True, kw_only=True)
class Parties:
    """What a run brings together."""

    config: TrainConfig
    lake: str
    base: str | None
    """URI of the model folder; None where it is not available (a dry run before it was fetched)."""
    text_encoder: str | None = None
    """URI of the folder of another text encoder, None for the base's."""
    text_encoder_at_hand: bool = True
    teacher: str | None = None
    earlier: Mapping[str, Any] | None = None
    """The record of the run whose checkpoint it starts from or continues."""
    own: Mapping[str, Any] | None = None
    """The record of this run itself, where it has checkpoints."""
    versions: Sequence[Version] = ()


def check_fit(parties: Parties) -> Noising:
    """Compare all parties of a run with each other.

    Returns:
        What its UNet learns to predict, and under which schedule; Stable Diffusion's for the distillation stage, which
        trains no UNet, and where neither base nor previous run is available.

    Raises:
        AltDiffusionError: two of them disagree, or one cannot be trained with.
    """
    quiet_libraries()
    config = parties.config
    facts = Facts(config.run)
    _kinds(parties)
    width = _text_width(parties, facts)
    if config.stage == "distillation":
        _teacher(parties, facts)
        if parties.base is not None:
            state_unet(parties.base, facts)
        return SD
    if width is not None:
        facts.state("width of the text vectors", *width, "use the text encoder that belongs to this base")
    factor = halvings = None
    if parties.base is not None:
        halvings = state_unet(parties.base, facts)
        factor = state_vae(parties.base, facts)
    noising = _noising(parties)
    _images(parties, facts, factor, halvings)
    if parties.base is not None and config.online is None:
        state_autoencoders(parties.base, parties.versions, parties.lake, facts)
    _tokens(parties, facts)
    return noising


def _kinds(parties: Parties) -> None:
    config = parties.config
    kind = "parallel" if config.stage == "distillation" else "images" if config.online is not None else "latents"
    for version in parties.versions:
        if version.manifest.kind != kind:
            raise AltDiffusionError(
                f"{version.ref.short}, named by datasets of run {config.run}",
                f"holds {version.manifest.kind}, not {kind}",
                {
                    "parallel": "name the dataset that jobs.parallel wrote",
                    "images": "name a dataset of images, or leave `online` out to train on latents",
                    "latents": "name the dataset that the encode job wrote",
                }[kind],
            )
        if not version.rows:
            raise AltDiffusionError(
                f"{version.ref.short}, named by datasets of run {config.run}", "holds no row", "leave it out"
            )


def _text_width(parties: Parties, facts: Facts) -> tuple[int, str] | None:
    """Return (width, place) of the vectors that the run's text encoder gives, where it is available."""
    folder = parties.text_encoder or parties.base
    if folder is None or not parties.text_encoder_at_hand or parties.config.stage == "distillation":
        return None
    shape = text_shape(folder)
    if shape is None:
        return None
    return shape[0], f"folder {folder}, file text_encoder/config.json"


def _teacher(parties: Parties, facts: Facts) -> None:
    settings, earlier = parties.config.distillation, parties.earlier
    if settings is None or parties.teacher is None or earlier is None or earlier.get("teacher") is None:
        return
    remedy = "set distillation.teacher_output as that run had it, or begin with another student"
    before = earlier["config"]["distillation"].get("teacher_output", "projected")  # which runs before the setting had
    facts.state("teacher's vector", before, f"run {earlier['run']}, distillation.teacher_output", remedy)
    facts.state("teacher's vector", settings.teacher_output, "the config, distillation.teacher_output", remedy)


def _noising(parties: Parties) -> Noising:
    """Return what the UNet learns to predict: as the config states, else as the start was trained."""
    config, objective = parties.config, parties.config.objective
    start, place = None, ""
    if parties.base is not None:
        start, place = read_noising(parties.base), f"model folder {parties.base}, file {CONFIG}"
    if parties.earlier is not None:
        before, where = noising_of(parties.earlier), f"run {parties.earlier['run']}"
        if start is not None and before.schedule != start.schedule:
            raise AltDiffusionError(
                f"run {config.run}, noise schedule",
                f"is {start.schedule} in {place}, but {before.schedule} in {where}, which was trained on that base",
                f"train {where} again: this version trains under the schedule of the base",
            )
        start, place = before, where
    if start is None:
        start, place = SD, "nothing that is available"
    origin, named, own = start, "the config, objective", parties.own
    if own is not None and began_before_noising(own):
        origin, named = noising_of(own), f"run.json of run {config.run}, begun by an earlier version"
    silent = objective.zero_terminal_snr is None
    wanted = replace(
        origin,
        prediction=objective.prediction or origin.prediction,
        zero_terminal_snr=origin.zero_terminal_snr if silent else bool(objective.zero_terminal_snr),
    )
    if place != "nothing that is available" and not objective.relearn:
        facts = Facts(config.run)
        remedy = (
            "leave objective.prediction and objective.zero_terminal_snr out to train what the start was trained for, "
            "or set objective.relearn: true where the UNet is to learn another prediction"
            if named == "the config, objective"
            else "train it again under another run name; objective.relearn: true continues as it was begun"
        )
        for at, one in ((place, start), (named, wanted)):
            facts.state("prediction type", one.prediction, at, remedy)
            facts.state("last step without signal (zero_terminal_snr)", one.zero_terminal_snr, at, remedy)
            facts.state("noise schedule", one.schedule, at, remedy)
    wanted.check(f"config of run {config.run}, key objective")
    return wanted


def _images(parties: Parties, facts: Facts, factor: int | None, halvings: int | None) -> None:
    """Check the shapes of latents, as rows and configs have them."""
    config = parties.config
    if config.online is not None:
        if factor is not None:
            side = config.online.resolution // factor
            place = f"the config, online.resolution {config.online.resolution}"
            check_halves((side, side), halvings, place)
        return
    for version in parties.versions:
        if not version.shards:
            continue
        channels, height, width, _ = first_row(version)
        remedy = "encode the images with the VAE and at the resolution that this run is to have"
        place = f"{version.ref.short}"
        facts.state("latent channels", channels, f"the rows of {place}", remedy)
        if not config.order.buckets:
            one_shape = "datasets of several shapes need order.buckets: true; or encode them at one resolution"
            facts.state("shape of latents", f"{width} x {height}", f"the rows of {place}", one_shape)
        encode = version.manifest.config.get("encode")
        sides = version.manifest.config.get("bucket") or [encode["resolution"]] * 2 if encode else None
        if sides is not None and factor is not None:
            here = Facts(config.run)
            pixels = f"{width * factor} x {height * factor}"
            here.state(f"pixels of {place}", f"{sides[0]} x {sides[1]}", "its manifest", remedy)
            here.state(f"pixels of {place}", pixels, f"its rows by the base's VAE of factor {factor}", remedy)
        check_halves((height, width), halvings, place)


def _tokens(parties: Parties, facts: Facts) -> None:
    """Check the length of captions, and some of their ids, by the run's own tokenizer."""
    folder = parties.text_encoder or parties.base
    if folder is None or not parties.text_encoder_at_hand:
        return
    place = f"folder {folder}, tokenizer"
    tokenizer = load_tokenizer(folder, own=parties.text_encoder is not None)
    length = int(tokenizer.model_max_length)
    facts.state("token positions", length, place, "")
    shape = text_shape(folder)
    if shape is not None and length > shape[1]:
        raise AltDiffusionError(
            place,
            f"pads to {length} positions, its text encoder has {shape[1]}",
            "set model_max_length in tokenizer_config.json as the model was trained (77 for Stable Diffusion)",
        )
    if parties.config.online is not None:
        return
    for version in parties.versions:
        if version.shards:
            remedy = "encode the captions again, with encode.max_length as this tokenizer pads to"
            facts.state("token positions", first_row(version)[3], f"the rows of {version.ref.short}", remedy)
            check_token_ids(version, [TokenColumn(ids="token_ids", text="caption", tokenizer=tokenizer)])
