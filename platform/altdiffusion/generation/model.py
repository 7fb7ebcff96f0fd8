"""The model that generates: located by folder or run, and pinned by the digest of its content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from altdiffusion.diffusion.folder import LINEAGE, content_digest, model_ref, read_lineage
from altdiffusion.diffusion.scheduler import CONFIG, read_noising
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.schedulers import make_scheduler
from altdiffusion.generation.settings import ModelConfig
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


def resolve_model(config: ModelConfig, lake_uri: str) -> Model:
    """Locate the folder and read it once for its digest.

    Raises:
        AltDiffusionError: it is missing, is not a model folder, or does not have the digest that the config or its own
            lineage.json gives.
    """
    uri = config.folder if config.folder is not None else _export(config, lake_uri)
    if not files.exists(files.join(uri, "model_index.json")):
        raise AltDiffusionError(
            f"model folder {uri}", "holds no model_index.json", "give the folder of an export or of a base model"
        )
    _check_scheduler(uri)
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
    return Model(uri=uri, content=content, ref=_origin(uri, content, document))


def _check_scheduler(uri: str) -> None:
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
    vae, unet = (files.read_json(files.join(model.uri, part, "config.json")) for part in ("vae", "unet"))
    return int(2 ** (len(vae["block_out_channels"]) - 1) * 2 ** (len(unet["block_out_channels"]) - 1))


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
