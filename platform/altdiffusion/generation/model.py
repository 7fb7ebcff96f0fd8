"""The model that generates: located by folder or run, and pinned by the digest of its content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from altdiffusion.diffusion.folder import LINEAGE, content_digest, model_ref, read_lineage
from altdiffusion.diffusion.models import (
    IGNORED,
    check_index,
    load_tokenizer,
    local_folder,
    text_encoder_class,
    text_positions,
)
from altdiffusion.diffusion.parts_fit import PartConfigs, check_fit
from altdiffusion.diffusion.scheduler import CONFIG, class_defaults, read_noising
from altdiffusion.diffusion.stock_base import stock_base
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.adapters import Adapter, resolve_adapters
from altdiffusion.generation.prompt_windows import check_reach
from altdiffusion.generation.schedulers import check_steps, make_scheduler
from altdiffusion.generation.settings import AdapterConfig, GenerateConfig, ModelConfig, SamplerName
from altdiffusion.generation.speed import check_compiler
from altdiffusion.refs import Ref
from altdiffusion.storage import files


@dataclass(frozen=True, kw_only=True)
class Model:
    """A reference to a model folder. It is small and is sent to the workers, which check the digest again."""

    uri: str
    content: str
    """Content digest: SHA-256 (hex) over the folder's files."""
    ref: Ref
    """Its reference in lineage: the checkpoint that an export was made from, else the model folder."""
    adapters: tuple[Adapter, ...] = ()
    """What is added to its weights, in this order."""

    @property
    def refs(self) -> list[Ref]:
        """The references of the model and its adapters, for lineage."""
        return list(dict.fromkeys([self.ref, *(one.ref for one in self.adapters)]))


def resolve_model(config: ModelConfig, lake_uri: str, lora: Sequence[AdapterConfig] = ()) -> Model:
    """Locate the folder, fetched from the hub first where its id is given, and read it once for its digest.

    Raises:
        AltDiffusionError: it is missing, is not a model folder, has parts that do not draw together, or does not have
            the digest that the config or its own lineage.json gives.
    """
    uri = (
        _export(config, lake_uri) if config.folder is None else stock_base(config.folder, lake_uri, config.base_configs)
    )
    index = read_index(uri)
    _check_scheduler(uri, index)
    _check_parts(uri, index)
    content = content_digest(uri)
    if config.digest is not None and not content.startswith(config.digest):
        raise AltDiffusionError(
            f"model folder {uri}",
            f"has content {content[:12]}, not {config.digest[:12]} as the config requires",
            "name the right model, or take the digest out of the config to accept this one",
        )
    document = read_lineage(uri) or {}
    recorded = document.get("content")
    if recorded is not None and recorded != content:
        raise AltDiffusionError(
            f"model folder {uri}",
            f"was changed or damaged: its content is {content[:12]}, its {LINEAGE} records {str(recorded)[:12]}",
            "export it again from its checkpoint",
        )
    adapters = resolve_adapters(lora, lake_uri, uri)
    return Model(uri=uri, content=content, ref=_origin(uri, content, document), adapters=adapters)


def read_index(uri: str) -> dict[str, Any]:
    """Return the model_index.json of a model folder.

    Raises:
        AltDiffusionError: there is none, or it describes something other than Stable Diffusion's pipeline.
    """
    what = f"model folder {uri}"
    if not files.exists(files.join(uri, "model_index.json")):
        inside = [name for name in files.list_folders(uri) if files.exists(files.join(uri, name, "model_index.json"))]
        raise AltDiffusionError(
            what,
            "holds no model_index.json",
            f"give one of the folders in it: {', '.join(inside[:5])}"
            if inside
            else "give the folder of an export or of a base model in diffusers' layout",
        )
    index = check_index(files.read_json(files.join(uri, "model_index.json")), what)
    text_encoder_class(index, what)
    return index


def ignored_parts(model: Model) -> list[str]:
    """Return the parts that a model's model_index.json names and that are not used, such as a safety checker."""
    index = read_index(model.uri)
    return sorted(name for name in IGNORED if any(index.get(name) or ()))


def _check_parts(uri: str, index: dict[str, Any]) -> None:
    """Refuse networks whose configs do not fit together."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    what = f"model folder {uri}"
    configs = {}
    for part in ("unet", "vae", "text_encoder"):
        try:
            config = files.read_json(files.join(uri, part, "config.json"))
        except FileNotFoundError as error:
            raise AltDiffusionError(
                f"{what}, {part}", "holds no config.json", "copy the folder as published"
            ) from error
        if not isinstance(config, dict):
            raise AltDiffusionError(f"{what}, file {part}/config.json", "is not a mapping", "copy it as published")
        configs[part] = config
    check_fit(
        PartConfigs(
            unet=class_defaults(UNet2DConditionModel) | configs["unet"],
            vae=class_defaults(AutoencoderKL) | configs["vae"],
            text_encoder=text_encoder_class(index, what).config_class(**configs["text_encoder"]).to_dict(),
        ),
        what,
    )


def check_sampling(model: Model, sampler: SamplerName, steps: int) -> None:
    """Refuse a sampler or a number of steps that the noise schedule of a model does not support.

    Raises:
        AltDiffusionError: the error states the setting and the schedule's own value.
    """
    config, what = read_scheduler(model.uri)
    check_steps(make_scheduler(sampler, config, what), steps, f"steps {steps} with sampler {sampler}, {what}")


def check_prompt_windows(model: Model, windows: int) -> None:
    """Refuse more windows of a prompt than a model's text encoder has positions for; it raises as `check_reach`."""
    if windows == 1:
        return
    with local_folder(model.uri) as local:
        index = read_index(model.uri)
        tokenizer = load_tokenizer(local, index, f"model folder {model.uri}")
        config = files.read_json(files.join(str(local), "text_encoder", "config.json"))
    positions = text_positions(text_encoder_class(index, f"model folder {model.uri}").config_class(**config))
    check_reach(windows, int(tokenizer.model_max_length), positions)


def check_speed(model: Model, config: GenerateConfig) -> None:
    """Refuse settings of speed that need another UNet or a compiler that is missing here.

    Raises:
        AltDiffusionError: the error states the setting and what the UNet or the machine has.
    """
    check_compiler(config.speed, config.device)
    if config.speed.deep_cache > 1:
        from diffusers import UNet2DConditionModel

        from altdiffusion.generation.deep_cache import check_blocks

        own = files.read_json(files.join(model.uri, "unet", "config.json"))
        check_blocks(class_defaults(UNet2DConditionModel) | own)


def _check_scheduler(uri: str, index: Mapping[str, Any]) -> None:
    """Refuse a scheduler whose first step divides by 0, so that every image would be black, and one without betas.

    Without betas, the samplers would use their own.
    """
    config, path = read_scheduler(uri)
    if config.get("rescale_betas_zero_snr") is True and config.get("prediction_type", "epsilon") == "epsilon":
        raise AltDiffusionError(
            path,
            "has rescale_betas_zero_snr with prediction_type epsilon: its last step has no signal, and the image that "
            "a UNet which predicts the noise gives there is not finite",
            "set rescale_betas_zero_snr to false, or prediction_type to what the UNet was trained for",
        )
    if config.get("prediction_type") != "sample":  # such a model can generate but cannot be trained
        read_noising(uri)
    scheduler = make_scheduler("ddim", config, path)
    loaded = str(index["scheduler"][-1])  # the class that is loaded; its defaults fill what the file leaves out
    other = make_scheduler("ddim", {**config, "_class_name": loaded}, f"{path} as {loaded}")
    if not other.alphas_cumprod.equal(scheduler.alphas_cumprod):
        raise AltDiffusionError(
            path,
            f"is of a {config['_class_name']} and leaves out betas, and model_index.json names a {loaded}, which has "
            "other ones",
            "write the betas into the file, or name one class in both",
        )
    values, steps = len(scheduler.alphas_cumprod), scheduler.config.num_train_timesteps
    if values != steps:
        raise AltDiffusionError(
            f"{path}, trained_betas",
            f"has {values} values, and num_train_timesteps is {steps}",
            f"set num_train_timesteps to {values} if the UNet was trained with these betas",
        )


def read_scheduler(uri: str) -> tuple[dict[str, Any], str]:
    """Return the settings of a model folder's scheduler, and the file's name for errors."""
    what = f"file {files.join(uri, *CONFIG.split('/'))}"
    try:
        config = files.read_json(files.join(uri, *CONFIG.split("/")))
    except FileNotFoundError as error:
        raise AltDiffusionError(what, "is missing", "give a model folder as published") from error
    if not isinstance(config, dict) or not isinstance(config.get("_class_name"), str):
        raise AltDiffusionError(
            what, "does not name a scheduler of diffusers in _class_name", "copy the model folder as published"
        )
    return config, what


def check_content(model: Model) -> None:
    """Refuse a folder that no longer has the content of the plan."""
    content = content_digest(model.uri)
    if content != model.content:
        raise AltDiffusionError(
            f"model folder {model.uri}",
            f"changed while images were drawn: its content is {content[:12]}, was {model.content[:12]}",
            "run the same command again, which starts a new set with the changed model",
        )


def size_multiple(model: Model) -> int:
    """Return the number of pixels that widths and heights must be multiples of: the VAE's factor times the UNet's."""
    unet = files.read_json(files.join(model.uri, "unet", "config.json"))
    return pixels_per_latent(model) * int(2 ** (len(unet["block_out_channels"]) - 1))


def pixels_per_latent(model: Model) -> int:
    """Return the number of pixels per latent along each side, the VAE's factor."""
    vae = files.read_json(files.join(model.uri, "vae", "config.json"))
    return int(2 ** (len(vae["block_out_channels"]) - 1))


def native_side(model: Model) -> int:
    """Return the side, in pixels, of the images that the UNet's config names: its `sample_size` times the VAE's factor.

    A config with two sides, or without, gives Stable Diffusion's 512.
    """
    vae, unet = (files.read_json(files.join(model.uri, part, "config.json")) for part in ("vae", "unet"))
    side = unet.get("sample_size")
    return int(side) * 2 ** (len(vae["block_out_channels"]) - 1) if isinstance(side, int) else 512


def _export(config: ModelConfig, lake_uri: str) -> str:
    folder = files.within(lake_uri, "exports", str(config.run))
    steps = {
        int(name.removeprefix("step-")): name
        for name in files.list_names(folder)
        if name.startswith("step-") and name[5:].isdigit()
    }
    step = max(steps, default=None) if config.step is None else config.step
    if step is None or step not in steps:
        others = files.list_names(files.join(lake_uri, "exports"))
        wanted = "no export" if config.step is None else f"no export of step {config.step}"
        shown = (
            f"its exports are of steps {', '.join(map(str, sorted(steps)))}"
            if steps
            else (f"train it first; runs with exports: {', '.join(others) or 'none'}")
        )
        raise AltDiffusionError(f"run {config.run}", f"has {wanted} in the lake {lake_uri}", shown)
    return files.within(folder, steps[step])


def _origin(uri: str, content: str, document: dict[str, Any]) -> Ref:
    parents = [str(parent) for parent in document.get("parents") or [document.get("checkpoint", "")]]
    checkpoints = [parent for parent in parents if parent.startswith("checkpoint:")]
    return Ref.parse(checkpoints[0]) if len(checkpoints) == 1 else model_ref(uri, content)
