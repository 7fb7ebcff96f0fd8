"""A model draws the same images whichever scheduler of diffusers its folder was saved with, or it is refused."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import diffusers
import numpy as np
import pytest
from numpy.typing import NDArray

from altdiffusion.diffusion import models
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.model import resolve_model
from altdiffusion.generation.sampler import Sampler
from altdiffusion.generation.schedulers import check_steps, make_scheduler
from altdiffusion.generation.settings import ModelConfig, SamplerName
from tests import training_lake

SAMPLERS: tuple[SamplerName, ...] = get_args(SamplerName)
SHIPPED = sorted(
    name
    for name in dir(diffusers)
    if name.endswith("Scheduler")
    and inspect.isclass(getattr(diffusers, name))
    and issubclass(getattr(diffusers, name), diffusers.SchedulerMixin)
)
DRAWN = {
    "DDIMInverseScheduler", "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler",
    "DEISMultistepScheduler", "DPMSolverMultistepInverseScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
    "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler",
    "PNDMScheduler", "SASolverScheduler", "UniPCMultistepScheduler",
}  # fmt: skip
BASES: dict[str, dict[str, Any]] = {
    "stable diffusion": {},
    "trailing": {"timestep_spacing": "trailing"},
    "v without signal at the end": {
        "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
    },
    "linear betas of 500 steps": {"beta_schedule": "linear", "beta_end": 0.02, "num_train_timesteps": 500},
}  # fmt: skip


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "base"
    models.save_bundle(training_lake.bundle(), folder)
    return folder


def put(folder: Path, scheduler: Any) -> None:
    """Save a scheduler in a model folder, as a pipeline's `save_pretrained` does."""
    shutil.rmtree(folder / "scheduler")
    scheduler.save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))


def draw(folder: Path, samplers: Sequence[SamplerName] = SAMPLERS) -> dict[SamplerName, NDArray[np.int64]]:
    bundle = models.load_bundle(folder)
    return {
        name: Sampler(bundle, sampler=name, steps=6, guidance_scale=2.0, batch_rows=1)
        .draw(["cat"], [1], 16, 16)
        .astype(int)
        for name in samplers
    }


@pytest.mark.parametrize("base", BASES)
def test_every_scheduler_that_diffusers_ships_draws_the_same_or_is_refused(
    networks: Path, tmp_path: Path, base: str
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(networks, folder)
    # As published: a file that states these settings and no others.
    published = folder / "scheduler" / "scheduler_config.json"
    published.write_text(json.dumps({"_class_name": "DDIMScheduler", **models.scheduler_config(), **BASES[base]}))
    own = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    samplers = [name for name in SAMPLERS if name != "pndm" or "rescale_betas_zero_snr" not in BASES[base]]
    wanted = draw(folder, samplers)
    assert len({image.tobytes() for image in wanted.values()}) == len(samplers)
    same = set()
    for kind in SHIPPED:
        try:
            put(folder, getattr(diffusers, kind).from_config(own.config))
        except (TypeError, ImportError, ValueError):  # needs another package, or settings of its own
            continue
        try:
            resolve_model(ModelConfig(folder=str(folder)), str(tmp_path))
        except AltDiffusionError as error:
            assert "scheduler_config.json" in str(error) and kind not in DRAWN, error
            continue
        for name, image in draw(folder, samplers).items():
            assert np.abs(image - wanted[name]).max() == 0, (kind, name)
        same.add(kind)
    assert same == DRAWN


@pytest.mark.parametrize("kind", ["DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_how_a_folders_own_sampler_steps_does_not_matter(networks: Path, tmp_path: Path, kind: str) -> None:
    """Karras sigmas and the like belong to the sampler that the folder was saved with."""
    folder = tmp_path / "base"
    shutil.copytree(networks, folder)
    wanted = draw(folder)
    own = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    put(folder, getattr(diffusers, kind).from_config(own.config, use_karras_sigmas=True))
    for name, image in draw(folder).items():
        np.testing.assert_array_equal(image, wanted[name])


@pytest.mark.parametrize(
    ("kind", "changes", "parts"),
    [
        ("LCMScheduler", {}, ("_class_name", "'LCMScheduler'", "consistency")),
        ("TCDScheduler", {}, ("_class_name", "'TCDScheduler'")),
        ("CogVideoXDDIMScheduler", {}, ("_class_name", "'CogVideoXDDIMScheduler'")),
        ("FlowMatchEulerDiscreteScheduler", {}, ("no noise schedule of betas",)),
        ("EDMEulerScheduler", {}, ("no noise schedule of betas",)),
        ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction"}, ("'flow_prediction'",)),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, ("use_flow_sigmas", "is True (must be False)")),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, ("'continuous' (must be 'discrete')",)),
        ("DDPMScheduler", {"thresholding": True}, ("thresholding", "draws with false")),
        ("DDIMScheduler", {"trained_betas": [0.01] * 40}, ("has 40 values", "num_train_timesteps is 1000")),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True}, ("rescale_betas_zero_snr", "epsilon")),
    ],
)
def test_what_no_sampler_can_draw_is_refused_by_name(
    networks: Path, tmp_path: Path, kind: str, changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(networks, folder)
    tree = {"_class_name": kind, **models.scheduler_config(), **changes}
    if parts[0].startswith("no noise"):
        tree = {"_class_name": kind, "num_train_timesteps": 1000}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(tree))
    with pytest.raises(AltDiffusionError) as error:
        resolve_model(ModelConfig(folder=str(folder)), str(tmp_path))
    for part in ("scheduler_config.json", *parts):
        assert part in str(error.value)


def test_an_index_that_names_another_class_than_the_file_must_mean_the_same_noise(
    networks: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(networks, folder)
    wanted, file = draw(folder), folder / "scheduler" / "scheduler_config.json"
    index = json.loads((folder / "model_index.json").read_text())
    for kind in ("EulerDiscreteScheduler", "HeunDiscreteScheduler"):
        (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", kind]}))
        assert resolve_model(ModelConfig(folder=str(folder)), str(tmp_path))
        for name, image in draw(folder).items():
            np.testing.assert_array_equal(image, wanted[name])
    file.write_text('{"_class_name": "DDIMScheduler"}')  # betas from 0.0001 by its defaults, from 0.00085 by Heun's
    with pytest.raises(AltDiffusionError, match=r"of a DDIMScheduler and leaves out betas.*HeunDiscreteScheduler"):
        resolve_model(ModelConfig(folder=str(folder)), str(tmp_path))
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "LCMScheduler"]}))
    with pytest.raises(AltDiffusionError, match="'LCMScheduler'"):
        resolve_model(ModelConfig(folder=str(folder)), str(tmp_path))


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("pndm", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, "rescale_betas_zero_snr.*pndm"),
        ("pndm", {"prediction_type": "sample"}, "prediction_type: is 'sample'.*pndm"),
        ("euler", {"thresholding": True}, "thresholding: is true.*euler"),
    ],
)
def test_a_schedule_that_a_sampler_does_not_support_is_refused(
    name: SamplerName, changes: dict[str, Any], problem: str
) -> None:
    config = {"_class_name": "DDIMScheduler", **models.scheduler_config(), **changes}
    assert make_scheduler("ddim", config)
    with pytest.raises(AltDiffusionError, match=problem):
        make_scheduler(name, config)


@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_that_a_schedule_cannot_draw_are_refused(name: SamplerName) -> None:
    config = {"_class_name": "DDIMScheduler", **models.scheduler_config()}
    for steps in (1, 2, 20, 25, 30, 50, 100, 128, 150):
        check_steps(make_scheduler(name, config), steps, f"steps {steps}")
    for steps in (400, 600, 1000):  # the first timesteps would be 799, 600, and one beyond the last or none
        with pytest.raises(AltDiffusionError, match=rf"steps {steps}: .*(1000|999)"):
            check_steps(make_scheduler(name, config), steps, f"steps {steps}")
    short = make_scheduler(name, config | {"num_train_timesteps": 40})
    with pytest.raises(AltDiffusionError, match=r"steps 50: .*40"):
        check_steps(short, 50, "steps 50")


def test_a_thousand_steps_are_drawn_where_the_schedule_has_them() -> None:
    config = {"_class_name": "DDIMScheduler", **models.scheduler_config(), "timestep_spacing": "trailing"}
    for name in SAMPLERS:
        check_steps(make_scheduler(name, config), 1000, "steps 1000")


def test_a_timestep_before_the_first_one_is_refused() -> None:
    """Diffusers rounds 61 trailing steps of 1000 to 62 timesteps, of which the last one is -1."""
    config = {"_class_name": "DDIMScheduler", **models.scheduler_config(), "timestep_spacing": "trailing"}
    for name in SAMPLERS:
        with pytest.raises(AltDiffusionError, match=r"timestep -1 of a schedule of timesteps 0 to 999.*such as 60"):
            check_steps(make_scheduler(name, config), 61, "steps 61")


@pytest.mark.parametrize(("steps", "other"), [(400, 333), (1000, 999)])
def test_the_error_names_a_number_of_steps_that_can_be_drawn(steps: int, other: int) -> None:
    config = {"_class_name": "DDIMScheduler", **models.scheduler_config()}
    with pytest.raises(AltDiffusionError, match=rf"such as {other}$"):
        check_steps(make_scheduler("ddim", config), steps, f"steps {steps}")
    check_steps(make_scheduler("ddim", config), other, "steps")
