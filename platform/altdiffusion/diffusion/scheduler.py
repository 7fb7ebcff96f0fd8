"""Schedulers of model folders: reading what they state about a UNet, and making one that states what was trained."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from altdiffusion.diffusion.objective import Noising
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files

CONFIG = "scheduler/scheduler_config.json"


def read_noising(folder: str) -> Noising:
    """Return what the UNet of a model folder (any URI) predicts, and under which noise, from its scheduler's config.

    Settings that the config leaves out are the defaults of its class, as in the stock pipeline.

    Raises:
        AltDiffusionError: there is no such config, diffusers has no such class, or training is not possible with it.
    """
    import diffusers

    what = f"model folder {folder}, file {CONFIG}"
    try:
        raw = files.read_json(files.join(folder, *CONFIG.split("/")))
    except FileNotFoundError as error:
        raise AltDiffusionError(what, "is missing", "give a model folder as published") from error
    kind = getattr(diffusers, str(raw.get("_class_name")), None) if isinstance(raw, dict) else None
    if kind is None or not hasattr(kind, "from_config"):
        raise AltDiffusionError(what, "does not name a scheduler of diffusers in _class_name", "copy it again")
    known = class_defaults(kind)
    # PNDM ignores rescale_betas_zero_snr, but its UNet may have been trained with it.
    given = {name: value for name, value in raw.items() if name in known or name == "rescale_betas_zero_snr"}
    return Noising.of(known | given, what)


def class_defaults(kind: Any) -> dict[str, Any]:
    """Return the values that a diffusers class uses for settings that a config leaves out."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}


def scheduler_for(scheduler: Any, noising: Noising) -> Any:
    """Return a base's scheduler with the settings that were trained, which samplers read from the export.

    A schedule that ends without signal needs a scheduler that supports it and starts at its last step. Where the base's
    has no such setting (PNDM, which Stable Diffusion 2.1 ships), DDIM replaces it.

    Args:
        scheduler: the base's, of any class with betas.
        noising: what the UNet predicts, and under which schedule.
    """
    changes: dict[str, Any] = {
        "prediction_type": noising.prediction,
        "num_train_timesteps": noising.num_train_timesteps,
        "beta_schedule": noising.beta_schedule,
        "beta_start": noising.beta_start,
        "beta_end": noising.beta_end,
        "trained_betas": None if noising.trained_betas is None else list(noising.trained_betas),
    }
    kind: Any = type(scheduler)
    known = class_defaults(kind).keys()
    if noising.zero_terminal_snr:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        if not changes.keys() <= known:
            return as_ddim(scheduler.config, changes)
    elif "rescale_betas_zero_snr" in known:
        changes["rescale_betas_zero_snr"] = False
    return as_kind(kind, scheduler.config, changes)


def as_ddim(config: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> Any:
    """Return a `DDIMScheduler` with the noise schedule of any scheduler's config.

    Settings that only DDIM has, and that such a config leaves out, get Stable Diffusion's own values, because the
    class's defaults clip the latents at every step.
    """
    from diffusers import DDIMScheduler

    own = {name: config.get(name, False) for name in ("clip_sample", "set_alpha_to_one")}
    return as_kind(DDIMScheduler, config, {**own, **(changes or {})})


def as_kind(kind: Any, config: Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
    """Return a scheduler of a class, the same or another, with every setting of a config that the class has.

    Diffusers does not pass on what a config has from its own class's defaults, nor what its pipeline changed in such a
    config (Stable Diffusion's sets `steps_offset: 1`). But defaults differ between classes (Heun's betas begin at
    0.00085, DDIM's at 0.0001), and exports store all settings, so a base and its export would draw different images.
    Therefore all settings are passed by name.

    Args:
        kind: class of diffusers.
        config: the config of a loaded scheduler, with its class's defaults.
        changes: settings that replace the config's.
    """
    given = {**config, **changes}
    known = class_defaults(kind).keys()
    return kind.from_config(config, **{name: value for name, value in given.items() if name in known})
