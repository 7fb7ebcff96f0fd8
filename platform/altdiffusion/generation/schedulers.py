"""The scheduler of a sampler, made from what a model folder's own scheduler states about the noise schedule.

A folder's scheduler mixes two things. What the UNet was trained with belongs to the model: betas, number of timesteps,
prediction type, whether the last step has signal. How few steps visit the timesteps belongs to the sampler, and the
defaults of these settings differ between the classes of diffusers: a folder that `save_pretrained` wrote with Euler
states `timestep_spacing: linspace` only because that is Euler's default. So the first kind is always taken; of the
second kind, a folder's value is taken only where it differs from the default of the folder's own class. Then a model
draws the same images whichever scheduler it was saved with.

| setting | value |
|---|---|
| `num_train_timesteps`, `beta_*`, `trained_betas`, `prediction_type`, `rescale_betas_zero_snr` | the folder's |
| `timestep_spacing` | the folder's if it is not its class's default, else `leading` (Stable Diffusion's) |
| `steps_offset` | the folder's if it is not its class's default, else 1 (Stable Diffusion's) |
| `set_alpha_to_one` | the folder's if it states one, else false (Stable Diffusion's) |
| `clip_sample` | false, as in the stock pipeline: latents are not pixels |
| solver, order, Karras sigmas, last step | the sampler's own, never the folder's |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from altdiffusion.diffusion.objective import Noising
from altdiffusion.diffusion.scheduler import class_defaults
from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.generation.settings import SamplerName

_CLASSES: dict[SamplerName, str] = {
    "ddim": "DDIMScheduler",
    "dpmpp": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}
_OWN: dict[SamplerName, dict[str, Any]] = {
    "ddim": {"clip_sample": False},
    "dpmpp": {"algorithm_type": "dpmsolver++", "solver_order": 2},
    "euler": {},
    "pndm": {"skip_prk_steps": True},
    "unipc": {"solver_order": 2},
}
_MAPPED = frozenset(
    f"{name}Scheduler"
    for name in (
        "DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep", "DPMSolverMultistep",
        "DPMSolverMultistepInverse", "DPMSolverSDE", "DPMSolverSinglestep", "EulerAncestralDiscrete", "EulerDiscrete",
        "HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete", "LMSDiscrete", "PNDM", "SASolver", "UniPCMultistep",
    )
)  # fmt: skip
"""Classes that state the noise schedule of a UNet which predicts from a noised latent and a whole timestep."""
_FOREIGN = {
    "use_flow_sigmas": (False, "the sigmas of flow matching, not of betas"),
    "timestep_type": ("discrete", "timesteps that are not those of the betas"),
    "snr_shift_scale": (1.0, "betas that are shifted afterwards"),
}
"""Settings that change what the UNet expects: the value that means nothing special, and what another one means."""
_COVERED = 0.85
"""Share of the noise schedule that the first step must reach. At timestep 850 of Stable Diffusion's schedule, the noise
is 0.988 of the standard deviation, and at the last one 0.998, so that pure noise is near enough to both."""


def settings_of(scheduler: Any) -> dict[str, Any]:
    """Return the settings of a scheduler of diffusers together with its class, from which the defaults come."""
    return {**scheduler.config, "_class_name": type(scheduler).__name__}


def make_scheduler(name: SamplerName, config: Mapping[str, Any], what: str = "scheduler") -> Any:
    """Return the diffusers scheduler of a sampler with the noise schedule that a folder's scheduler states.

    Args:
        name: the sampler.
        config: settings of the folder's scheduler; `_class_name` determines which of them are only defaults. Without
            it, every setting is taken.
        what: names the folder's scheduler in errors.

    Raises:
        AltDiffusionError: the folder's scheduler describes something other than noise by betas, or the sampler does not
            support its schedule; the error states both values.
    """
    import diffusers

    defaults = _defaults(config, what)
    noising, prediction = _noising(defaults | dict(config), what)
    kind = getattr(diffusers, _CLASSES[name])
    supported = class_defaults(kind)
    settings = {
        **_OWN[name],
        "num_train_timesteps": noising.num_train_timesteps,
        "beta_start": noising.beta_start,
        "beta_end": noising.beta_end,
        "beta_schedule": noising.beta_schedule,
        "trained_betas": None if noising.trained_betas is None else list(noising.trained_betas),
        "prediction_type": prediction,
        "timestep_spacing": _chosen(config, defaults, "timestep_spacing", "leading"),
        "steps_offset": _chosen(config, defaults, "steps_offset", 1),
    }
    if "set_alpha_to_one" in supported:
        settings["set_alpha_to_one"] = config.get("set_alpha_to_one", False)
    if noising.zero_terminal_snr:
        settings["rescale_betas_zero_snr"] = True
    if config.get("thresholding"):
        settings |= _thresholding(name, config, what)
    unsupported = sorted(settings.keys() - supported.keys())
    if name == "pndm" and prediction == "sample":
        unsupported.append("prediction_type")
    if unsupported:
        setting = unsupported[0]
        raise AltDiffusionError(
            f"{what}, {setting}",
            f"is {settings[setting]!r}, which the sampler {name} does not support",
            "use the sampler ddim",
        )
    return kind(**settings)


def check_steps(scheduler: Any, steps: int, what: str) -> None:
    """Refuse a number of steps that a scheduler cannot draw with, or whose first step is not near pure noise.

    The spacing `leading` divides the number of timesteps by that of the steps and drops the rest: 400 steps of 1000
    timesteps would begin at timestep 799, where a noised image still has its shape, from noise without any. The spacing
    `trailing` visits a timestep -1 for some numbers, such as 61, where its fractions do not add up; it is taken for the
    last one.

    Args:
        scheduler: of `make_scheduler`; its timesteps are set.
        what: names the steps in errors.

    Raises:
        AltDiffusionError: the error states the steps and the schedule's timesteps.
    """
    problem = _unfit_steps(scheduler, steps)
    if problem is not None:
        total = len(scheduler.alphas_cumprod)
        fewer = (number for number in range(min(steps, total) - 1, 0, -1) if _unfit_steps(scheduler, number) is None)
        raise AltDiffusionError(what, problem, f"use another number, such as {next(fewer, 1)}")


def _unfit_steps(scheduler: Any, steps: int) -> str | None:
    """Return why a scheduler cannot draw with so many steps; None if it can."""
    total = len(scheduler.alphas_cumprod)
    try:
        scheduler.set_timesteps(steps)
        visited = [float(timestep) for timestep in scheduler.timesteps]
    except Exception as error:  # each class raises its own
        return f"cannot be drawn from a schedule of {total} timesteps ({first_line(error)})"
    outside = [timestep for timestep in visited if not 0 <= timestep <= total - 1]
    if outside:
        return f"would visit timestep {outside[0]:g} of a schedule of timesteps 0 to {total - 1}"
    if steps > 1 and visited[0] < _COVERED * (total - 1) * (1 - 1 / steps):
        return f"would begin at timestep {visited[0]:g} of a schedule of {total}, not near its end"
    return None


def _defaults(config: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the defaults of the class that a config names; none where it names none."""
    import diffusers

    name = config.get("_class_name")
    if name is None:
        return {}
    if name not in _MAPPED:
        raise AltDiffusionError(
            f"{what}, _class_name",
            f"is {name!r}; the samplers {', '.join(_CLASSES)} draw only with the noise schedules of {_shown(_MAPPED)}",
            "use a model of Stable Diffusion's kind; flow matching, EDM and consistency models (LCM, TCD) draw with "
            "samplers of their own, which are not supported",
        )
    kind = getattr(diffusers, name)
    if "beta_start" not in class_defaults(kind):  # a placeholder, for a package that is not installed here
        return class_defaults(diffusers.DPMSolverMultistepScheduler)
    return class_defaults(kind)


def _noising(config: Mapping[str, Any], what: str) -> tuple[Noising, str]:
    """Return the noise schedule and the prediction type, which may also be `sample`: it can be drawn, not trained."""
    for name, (plain, meaning) in _FOREIGN.items():
        if config.get(name, plain) != plain:
            raise AltDiffusionError(
                f"{what}, {name}",
                f"is {config[name]!r} (must be {plain!r}): {meaning}, which the samplers cannot draw with",
                "use a model of Stable Diffusion's kind",
            )
    if config.get("prediction_type") != "sample":
        noising = Noising.of(config, what)
        return noising, noising.prediction
    # Read as v_prediction, which may have a last step without signal as `sample` may.
    return Noising.of({**config, "prediction_type": "v_prediction"}, what), "sample"


def _chosen(config: Mapping[str, Any], defaults: Mapping[str, Any], name: str, own: Any) -> Any:
    value = config.get(name)
    return own if value is None or (name in defaults and value == defaults[name]) else value


def _thresholding(name: SamplerName, config: Mapping[str, Any], what: str) -> dict[str, Any]:
    if name != "ddim" or config.get("_class_name", "DDIMScheduler") != "DDIMScheduler":
        raise AltDiffusionError(
            f"{what}, thresholding",
            f"is true in a {config.get('_class_name')}, and the sampler {name} draws with false",
            "set it to false: it is meant for models of pixels, not of latents",
        )
    names = ("thresholding", "dynamic_thresholding_ratio", "sample_max_value")
    return {key: config[key] for key in names if key in config}


def _shown(names: frozenset[str]) -> str:
    return ", ".join(sorted(name.removesuffix("Scheduler") for name in names))
