"""Whether what a run brings together fits: base, the run before it, text encoder, data and config.

Parts that do not fit train without a word, and what comes of it draws noise. So every party states facts, each under a
name and with the place where it stands; of one name there is one value, or the run is refused, naming both values and
both places. What the config leaves open (what the UNet answers, whether the last step holds signal) is inherited from
what the run starts from.

| fact | stated by |
|---|---|
| what the UNet answers, signal of its last step | base (scheduler) or the run before; config (objective) |
| noise schedule | base (scheduler), the run before |
| latent channels | UNet (in and out), VAE, dataset (rows, and the VAE that made it) |
| scaling and shift of latents, encoder of the VAE | base (vae), dataset (what encode noted of its VAE) |
| width of the text vectors | UNet, text encoder |
| token positions | tokenizer, dataset; and the encoder's positions, which must suffice |
| token ids | tokenizer, dataset (some captions are tokenized again) |
| pixels and shape of latents | dataset (config, rows), the other datasets, config (online); the UNet must halve them |
| teacher's vector | the run before, config (distillation) |

`resolve` asks for all of it; the dry run asks of what is at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from altdiffusion.diffusion.autoencoder import Autoencoder, load_autoencoder, noted
from altdiffusion.diffusion.folder import content_digest
from altdiffusion.diffusion.models import local_folder, read_index
from altdiffusion.diffusion.objective import SD, Noising
from altdiffusion.diffusion.quiet import quiet_libraries
from altdiffusion.diffusion.scheduler import CONFIG, class_defaults, read_noising
from altdiffusion.diffusion.weights import first_line
from altdiffusion.errors import AltDiffusionError
from altdiffusion.refs import Ref
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Lake, Version
from altdiffusion.storage.shard_reader import ShardReader, naming
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.data.tokens import TokenColumn, check_token_ids
from altdiffusion.training.record import began_before_noising, noising_of

_OTHER_CONDITIONS = (
    "class_embed_type",
    "num_class_embeds",
    "addition_embed_type",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
)
"""Settings of UNets that need more than a noised latent, a timestep and a text (SDXL, upscalers, distilled ones)."""


@dataclass(frozen=True, kw_only=True)
class Parties:
    """What a run brings together."""

    config: TrainConfig
    lake: str
    base: str | None
    """URI of the model folder; None where it is not at hand (a dry run before it was fetched)."""
    text_encoder: str | None = None
    """URI of the folder of another text encoder, None for the base's."""
    text_encoder_at_hand: bool = True
    teacher: str | None = None
    earlier: Mapping[str, Any] | None = None
    """Record of the run whose checkpoint it starts from or continues."""
    own: Mapping[str, Any] | None = None
    """Record of this run itself, where it has checkpoints."""
    versions: Sequence[Version] = ()


class _Facts:
    """Of each name the first value and its place; a second value is an error."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._known: dict[str, tuple[Any, str]] = {}

    def state(self, name: str, value: Any, place: str, remedy: str) -> None:
        known, first = self._known.setdefault(name, (value, place))
        if known != value:
            raise AltDiffusionError(
                f"run {self._run}, {name}", f"is {_shown(known)} in {first}, but {_shown(value)} in {place}", remedy
            )


def check_fit(parties: Parties) -> Noising:
    """Hold all parties of a run against each other.

    Returns:
        What its UNet learns to answer, and under which schedule; Stable Diffusion's for the distillation stage, which
        trains no UNet, and where neither base nor run before is at hand.

    Raises:
        AltDiffusionError: two of them disagree, or one cannot be trained with.
    """
    quiet_libraries()
    config = parties.config
    facts = _Facts(config.run)
    _kinds(parties)
    width = _text_width(parties, facts)
    if config.stage == "distillation":
        _teacher(parties, facts)
        if parties.base is not None:
            _unet(parties.base, facts)
        return SD
    if width is not None:
        facts.state("width of the text vectors", *width, "use the text encoder that belongs to this base")
    factor = halvings = None
    if parties.base is not None:
        halvings = _unet(parties.base, facts)
        factor = _vae(parties.base, facts)
    noising = _noising(parties)
    _pictures(parties, facts, factor, halvings)
    _autoencoder(parties, facts)
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
                    "images": "name a dataset of pictures, or leave `online` out to train on latents",
                    "latents": "name the dataset that the encode job wrote",
                }[kind],
            )
        if not version.rows:
            raise AltDiffusionError(
                f"{version.ref.short}, named by datasets of run {config.run}", "holds no row", "leave it out"
            )


def _unet(base: str, facts: _Facts) -> int:
    """State a UNet's facts; return how often it halves a latent's sides."""
    from diffusers import UNet2DConditionModel

    config = _config(base, "unet", UNet2DConditionModel)
    place = f"model folder {base}, file unet/config.json"
    asked = [name for name in _OTHER_CONDITIONS if config.get(name) is not None]
    if asked:
        raise AltDiffusionError(
            place,
            f"sets {', '.join(asked)}: this UNet needs more than a latent, a timestep and a text",
            "use a base of Stable Diffusion 1's or 2's kind",
        )
    for name in ("in_channels", "out_channels"):
        facts.state("latent channels", config[name], f"{place}, {name}", "use UNet, VAE and latents of one model")
    width = config["cross_attention_dim"]
    facts.state(
        "width of the text vectors", width, f"{place}, cross_attention_dim", "use the encoder that belongs to this base"
    )
    return len(config["block_out_channels"]) - 1


def _vae(base: str, facts: _Facts) -> int:
    """State a VAE's facts; return pixels of a side for one of its latent's."""
    from diffusers import AutoencoderKL

    config = _config(base, "vae", AutoencoderKL)
    place, remedy = f"model folder {base}, file vae/config.json", "use UNet, VAE and latents of one model"
    facts.state("latent channels", config["latent_channels"], f"{place}, latent_channels", remedy)
    facts.state("scaling of latents", float(config["scaling_factor"]), f"{place}, scaling_factor", remedy)
    if config.get("shift_factor"):
        raise AltDiffusionError(
            f"{place}, shift_factor",
            f"is {config['shift_factor']:g}: stock StableDiffusionPipeline does not add it back, so it could not draw "
            "with what is trained",
            "use a base whose VAE has no shift",
        )
    return int(2 ** (len(config["block_out_channels"]) - 1))


def _text_width(parties: Parties, facts: _Facts) -> tuple[int, str] | None:
    """(width, place) of the vectors that the run's text encoder gives, where it is at hand; checks its positions."""
    folder = parties.text_encoder or parties.base
    if folder is None or not parties.text_encoder_at_hand or parties.config.stage == "distillation":
        return None
    shape = _text_shape(folder)
    if shape is None:
        return None
    return shape[0], f"folder {folder}, file text_encoder/config.json"


def _text_shape(folder: str) -> tuple[int, int] | None:
    """(width, token positions) of a stock text encoder; None where it is of another form, which is converted first."""
    from transformers import AltCLIPTextConfig, CLIPTextConfig

    raw = _json(folder, "text_encoder/config.json")
    if raw.get("model_type") == "altclip_text_model":
        config = AltCLIPTextConfig(**raw)
        return int(config.project_dim), int(config.max_position_embeddings) - int(config.pad_token_id) - 1
    if raw.get("model_type") == "clip_text_model":
        plain = CLIPTextConfig(**raw)
        return int(plain.hidden_size), int(plain.max_position_embeddings)
    return None


def _teacher(parties: Parties, facts: _Facts) -> None:
    settings, earlier = parties.config.distillation, parties.earlier
    if settings is None or parties.teacher is None or earlier is None or earlier.get("teacher") is None:
        return
    remedy = "set distillation.teacher_output as that run had it, or begin with another student"
    before = earlier["config"]["distillation"].get("teacher_output", "projected")  # which runs before the setting had
    facts.state("teacher's vector", before, f"run {earlier['run']}, distillation.teacher_output", remedy)
    facts.state("teacher's vector", settings.teacher_output, "the config, distillation.teacher_output", remedy)


def _noising(parties: Parties) -> Noising:
    """What the UNet learns to answer: as the config says, else as the start was trained."""
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
        start, place = SD, "nothing that is at hand"
    origin, named, own = start, "the config, objective", parties.own
    if own is not None and began_before_noising(own):
        origin, named = noising_of(own), f"run.json of run {config.run}, begun by an earlier version"
    silent = objective.zero_terminal_snr is None
    wanted = replace(
        origin,
        prediction=objective.prediction or origin.prediction,
        zero_terminal_snr=origin.zero_terminal_snr if silent else bool(objective.zero_terminal_snr),
    )
    if place != "nothing that is at hand" and not objective.relearn:
        facts = _Facts(config.run)
        remedy = (
            "leave objective.prediction and objective.zero_terminal_snr out to train what the start was trained for, "
            "or set objective.relearn: true where the UNet is to learn another answer"
            if named == "the config, objective"
            else "train it again under another run name; objective.relearn: true goes on as it was begun"
        )
        for at, one in ((place, start), (named, wanted)):
            facts.state("prediction type", one.prediction, at, remedy)
            facts.state("last step without signal (zero_terminal_snr)", one.zero_terminal_snr, at, remedy)
            facts.state("noise schedule", one.schedule, at, remedy)
    wanted.check(f"config of run {config.run}, key objective")
    return wanted


def _pictures(parties: Parties, facts: _Facts, factor: int | None, halvings: int | None) -> None:
    """Shapes of latents, as rows and configs have them."""
    config = parties.config
    if config.online is not None:
        if factor is not None:
            side = config.online.resolution // factor
            place = f"the config, online.resolution {config.online.resolution}"
            _check_halves((side, side), halvings, place)
        return
    for version in parties.versions:
        if not version.shards:
            continue
        channels, height, width, _ = _first_row(version)
        remedy = "encode the pictures with the VAE and at the resolution that this run is to have"
        place = f"{version.ref.short}"
        facts.state("latent channels", channels, f"the rows of {place}", remedy)
        if not config.order.buckets:
            one_shape = "datasets of several shapes need order.buckets: true; or encode them at one resolution"
            facts.state("shape of latents", f"{width} x {height}", f"the rows of {place}", one_shape)
        encode = version.manifest.config.get("encode")
        sides = version.manifest.config.get("bucket") or [encode["resolution"]] * 2 if encode else None
        if sides is not None and factor is not None:
            here = _Facts(config.run)
            pixels = f"{width * factor} x {height * factor}"
            here.state(f"pixels of {place}", f"{sides[0]} x {sides[1]}", "its manifest", remedy)
            here.state(f"pixels of {place}", pixels, f"its rows by the base's VAE of factor {factor}", remedy)
        _check_halves((height, width), halvings, place)


def _check_halves(sides: tuple[int, int], halvings: int | None, place: str) -> None:
    if halvings is not None and any(side % 2**halvings for side in sides):
        raise AltDiffusionError(
            place,
            f"gives latents of {sides[1]} x {sides[0]}, which the base's UNet cannot halve {halvings} times",
            f"take sides of latents that are multiples of {2**halvings}",
        )


def _first_row(version: Version) -> tuple[int, int, int, int]:
    """(channels, height, width, token ids) of a version's first row."""
    uri = version.shard_uri(0)
    with naming(uri):
        reader = ShardReader(uri, version.shards[0].bytes)
        names = ["channels", "height", "width", "token_ids"]
        row = reader.read(0, names, rows=np.zeros(1, np.int64)).to_pylist()[0]
        reader.close()
    return int(row["channels"]), int(row["height"]), int(row["width"]), len(row["token_ids"])


def _autoencoder(parties: Parties, facts: _Facts) -> None:
    """Whether the latents are those that the base's own VAE makes."""
    if parties.base is None or parties.config.online is not None:
        return
    folder = files.join(parties.base, "vae")
    digest: str | None = None
    mine: Autoencoder | None = None
    for version in parties.versions:
        made_by = autoencoder_of(version, parties.lake)
        if made_by is None:
            continue
        digest = digest or content_digest(folder)
        if made_by.digest == digest:
            continue
        remedy = f"encode the pictures with {folder}, or use the base of that autoencoder"
        theirs = noted(parties.lake, made_by.digest)
        if theirs is None:
            raise AltDiffusionError(
                f"{version.ref.short}",
                f"has latents of {made_by.short}, and the base's VAE {folder} is {digest[:12]}",
                f"{remedy}. Where both hold the same weights, run the encode job of that dataset again: it then notes "
                "what its autoencoder is",
            )
        mine = mine or Autoencoder.of(load_autoencoder(folder))
        for place, one in (
            (f"model folder {folder}", mine),
            (f"{made_by.short}, which made {version.ref.short}", theirs),
        ):
            facts.state("latent channels", one.latent_channels, place, remedy)
            facts.state("scaling of latents", one.scaling_factor, place, remedy)
            facts.state("shift of latents", one.shift_factor, place, remedy)
            facts.state("encoder of the VAE (SHA-256)", one.encoder, place, remedy)


def autoencoder_of(version: Version, lake: str) -> Ref | None:
    """Return the autoencoder that made a version's latents, or the version that it was derived from; None if no
    manifest tells."""
    manifest = version.manifest
    if "encode" in manifest.config:
        return next((ref for ref in manifest.parent_refs if ref.kind == "model"), None)
    for ref in manifest.parent_refs:
        if ref.kind == "dataset":
            parent = Lake(lake).version(ref)
            if parent.manifest.kind == "latents":
                return autoencoder_of(parent, lake)
    return None


def _tokens(parties: Parties, facts: _Facts) -> None:
    """Length of captions, and some of their ids, by the tokenizer that the run brings."""
    folder = parties.text_encoder or parties.base
    if folder is None or not parties.text_encoder_at_hand:
        return
    place = f"folder {folder}, tokenizer"
    tokenizer = _tokenizer(folder, own=parties.text_encoder is not None)
    length = int(tokenizer.model_max_length)
    facts.state("token positions", length, place, "")
    shape = _text_shape(folder)
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
            facts.state("token positions", _first_row(version)[3], f"the rows of {version.ref.short}", remedy)
            check_token_ids(version, [TokenColumn(ids="token_ids", text="caption", tokenizer=tokenizer)])


def _tokenizer(folder: str, *, own: bool) -> Any:
    """The tokenizer of a base, of the class that its index names, or of a text encoder's folder."""
    import transformers

    with local_folder(folder) as local:
        name = "XLMRobertaTokenizer" if own else str(read_index(local, folder)["tokenizer"][1])
        kind = getattr(transformers, name, None)
        try:
            if kind is None:
                raise ValueError(f"transformers has no {name}")
            return kind.from_pretrained(local / "tokenizer", local_files_only=True, trust_remote_code=False)
        except Exception as error:  # each class has its own
            raise AltDiffusionError(
                f"folder {folder}, tokenizer", f"cannot be opened ({first_line(error)})", "copy it as published"
            ) from error


def _config(base: str, part: str, kind: Any) -> dict[str, Any]:
    """config.json of a network, its class's defaults filled in."""
    return class_defaults(kind) | _json(base, f"{part}/config.json")


def _json(folder: str, name: str) -> dict[str, Any]:
    uri = files.join(folder, *name.split("/"))
    try:
        found = files.read_json(uri)
    except FileNotFoundError as error:
        raise AltDiffusionError(
            f"model folder {folder}", f"holds no {name}", "give the folder of an export or of a base model"
        ) from error
    if not isinstance(found, dict):
        raise AltDiffusionError(f"model folder {folder}, file {name}", "is not a mapping", "copy it as published")
    return found


def _shown(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:
        return value[:12]
    return f"{value:g}" if isinstance(value, float) else str(value)
