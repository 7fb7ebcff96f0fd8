"""Stages that do not fit together are refused before anything is loaded, with both values and where they are; and
what is exported is what was trained. Tiny models in the published diffusers layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from altdiffusion.diffusion import models
from altdiffusion.diffusion.autoencoder import Autoencoder, load_autoencoder
from altdiffusion.diffusion.folder import content_digest
from altdiffusion.diffusion.objective import Noising, Schedule
from altdiffusion.diffusion.scheduler import read_noising, scheduler_for
from altdiffusion.diffusion.text_encoder import save_text_encoder
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.model import resolve_model
from altdiffusion.generation.sampler import Sampler
from altdiffusion.generation.schedulers import make_scheduler
from altdiffusion.generation.settings import ModelConfig
from altdiffusion.refs import Ref
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.ledger import UnitRecord
from altdiffusion.training.exports.export import export_checkpoint
from altdiffusion.training.launch_local import run_local
from altdiffusion.training.run.fit.latent_facts import autoencoder_of
from altdiffusion.training.run.record import noising_of, read_record
from altdiffusion.training.run.resolve import resolve
from altdiffusion.training.tasks import DiffusionTask
from altdiffusion.training.weights import load_models
from tests import training_lake
from tests.training_lake import Recorder, bundle, config, write_latents

SD_V = {"prediction_type": "v_prediction"}
CPU = torch.device("cpu")


def rewrite(path: str | Path, **changes: Any) -> None:
    """Change settings of a JSON file; None removes one."""
    tree = json.loads(Path(path).read_text()) | changes
    Path(path).write_text(json.dumps({key: value for key, value in tree.items() if value is not None}))


def scheduler_file(lake: str, base: str = "base") -> Path:
    return Path(lake) / "models" / base / "scheduler" / "scheduler_config.json"


def put_scheduler(lake: str, kind: str, **settings: Any) -> None:
    """Give the base another scheduler, as its publisher would: settings of `kind` that are not named are left out."""
    folder = Path(lake) / "models" / "base"
    rewrite(folder / "model_index.json", scheduler=["diffusers", kind])
    scheduler_file(lake).write_text(json.dumps({"_class_name": kind, **settings}))


def refused(lake: str, *parts: str, **changes: Any) -> None:
    with pytest.raises(AltDiffusionError) as error:
        resolve(config(lake, **changes), lake)
    for part in parts:
        assert part in str(error.value), f"{part!r} is not in {error.value}"
    assert not (Path(lake) / "checkpoints" / "align").exists()


# What the UNet answers, and under which noise


@pytest.mark.parametrize(
    "kind", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"]
)
def test_a_config_without_an_objective_trains_and_exports_what_the_base_predicts(lake: str, kind: str) -> None:
    """Stable Diffusion 2.1 (768) answers v, 2.1-base epsilon; the class of the scheduler does not determine it."""
    shared = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    for number, prediction in enumerate(("v_prediction", "epsilon")):
        put_scheduler(lake, kind, **shared, prediction_type=prediction)
        name = f"run-{number}"
        run_local(config(lake, run=name, steps=1, checkpoint_every=1), lake, reporter=Recorder())
        folder = export_checkpoint(lake, name)
        exported = json.loads((Path(folder) / "scheduler/scheduler_config.json").read_text())
        assert (exported["_class_name"], exported["prediction_type"]) == (kind, prediction)
        assert read_noising(folder) == read_noising(f"{lake}/models/base") == Noising(prediction=prediction)  # type: ignore[arg-type]
        run = resolve(config(lake, run=name, steps=1), lake)
        task = DiffusionTask(run.config, load_models(run), CPU, run.key)
        assert task.prediction == prediction
        next_stage = {"run": f"next-{number}", "stage": "quality", "start": {"checkpoint": name}}
        assert resolve(config(lake, **next_stage), lake).noising.prediction == prediction
        refused(lake, "prediction type", prediction, f"run {name}", "the config, objective", "relearn",
                **next_stage, objective={"prediction": "epsilon" if number == 0 else "v_prediction"})  # fmt: skip


def test_a_v_base_and_a_config_of_epsilon_disagree_by_name(lake: str) -> None:
    rewrite(scheduler_file(lake), **SD_V)
    refused(lake, "prediction type: is v_prediction", "scheduler/scheduler_config.json", "but epsilon in the config",
            "leave objective.prediction", objective={"prediction": "epsilon"})  # fmt: skip
    on_purpose = config(lake, objective={"prediction": "epsilon", "relearn": True})
    assert resolve(on_purpose, lake).noising.prediction == "epsilon"
    silent, named = (resolve(config(lake, objective=o), lake) for o in ({}, {"prediction": "v_prediction"}))
    assert silent.fingerprint == named.fingerprint


def test_epsilon_under_a_schedule_without_signal_is_refused_everywhere(lake: str) -> None:
    rewrite(scheduler_file(lake), rescale_betas_zero_snr=True)
    refused(lake, "predicts epsilon", "rescale_betas_zero_snr", "not finite")
    with pytest.raises(AltDiffusionError, match=r"scheduler_config.json: has rescale_betas_zero_snr with .*epsilon"):
        resolve_model(ModelConfig(folder=f"{lake}/models/base"), lake)
    rewrite(scheduler_file(lake), **SD_V)
    run = resolve(config(lake), lake)
    assert run.noising.zero_terminal_snr and float(Schedule.of(run.noising).signal[-1]) == 0.0
    refused(lake, "predicts epsilon", objective={"prediction": "epsilon", "relearn": True})
    refused(lake, "last step without signal", "True", "False", objective={"zero_terminal_snr": False})


@pytest.mark.parametrize(
    "settings",
    [
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "num_train_timesteps": 1000},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 500},
        {"beta_schedule": "scaled_linear", "beta_start": 0.001, "beta_end": 0.01, "num_train_timesteps": 800},
        {"trained_betas": [0.001 * (i + 1) for i in range(40)]},
        {},  # the class's own defaults, as the stock pipeline takes them
    ],
    ids=lambda settings: settings.get("beta_schedule", "trained" if settings else "defaults"),
)
@pytest.mark.parametrize("kind", ["DDIMScheduler", "HeunDiscreteScheduler"])
def test_a_base_with_another_noise_schedule_is_trained_and_exported_with_its_own(
    lake: str, kind: str, settings: dict[str, Any]
) -> None:
    import diffusers

    put_scheduler(lake, kind, **settings)
    stock = getattr(diffusers, kind).from_pretrained(f"{lake}/models/base/scheduler")
    run = resolve(config(lake, steps=1), lake)
    task = DiffusionTask(run.config, load_models(run), CPU)
    torch.testing.assert_close(task.schedule.signal**2, stock.alphas_cumprod.float(), rtol=1e-4, atol=1e-6)
    assert task.schedule.steps == len(stock.alphas_cumprod)
    run_local(config(lake, steps=1, checkpoint_every=1), lake, reporter=Recorder())
    folder = export_checkpoint(lake, "align")
    exported = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True).scheduler
    torch.testing.assert_close(exported.alphas_cumprod, stock.alphas_cumprod)
    loaded = models.load_bundle(folder).scheduler.config
    for name in ("ddim", "dpmpp"):
        drawn = make_scheduler(name, loaded)  # type: ignore[arg-type]
        torch.testing.assert_close(drawn.alphas_cumprod, stock.alphas_cumprod)


def test_a_scheduler_states_what_was_trained_whatever_the_base_states() -> None:
    """As of a run that an earlier version trained on a base with another schedule."""
    import diffusers

    for kind in (diffusers.PNDMScheduler, diffusers.EulerDiscreteScheduler, diffusers.DDIMScheduler):
        other = kind(beta_schedule="linear", prediction_type="v_prediction", num_train_timesteps=500)
        made = scheduler_for(other, Noising())
        assert type(made) is kind and Noising.of(made.config, "it") == Noising()
        stock = Schedule.scaled_linear().signal ** 2
        torch.testing.assert_close(made.alphas_cumprod, stock, rtol=1e-4, atol=1e-6)


def test_ddim_made_from_another_classs_config_does_not_clip(lake: str) -> None:
    import diffusers

    put_scheduler(lake, "EulerDiscreteScheduler", beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    loaded = models.load_bundle(f"{lake}/models/base").scheduler
    assert type(loaded) is diffusers.EulerDiscreteScheduler
    made = make_scheduler("ddim", loaded.config).config
    assert (made.clip_sample, made.set_alpha_to_one) == (False, False)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, ("no noise schedule of betas", "rectified-flow")),
        ({"_class_name": "NobodysScheduler"}, ("does not name a scheduler of diffusers",)),
        ({"prediction_type": "sample"}, ("prediction_type", "'sample'")),
        ({"beta_schedule": "sigmoid"}, ("beta_schedule", "'sigmoid'")),
        ({"beta_end": 1.5}, ("betas outside of 0 to 1",)),
    ],
)
def test_a_scheduler_that_nothing_can_be_trained_with_is_named(
    lake: str, settings: dict[str, Any], parts: tuple[str, ...]
) -> None:
    rewrite(scheduler_file(lake), **settings)
    refused(lake, "scheduler/scheduler_config.json", *parts)


def test_a_run_that_an_earlier_version_trained_past_its_base_is_not_continued_in_silence(lake: str) -> None:
    """Earlier versions trained on epsilon and on Stable Diffusion's schedule, whatever the base's scheduler stated."""
    run_local(config(lake, steps=3), lake, reporter=Recorder())
    record = Path(lake) / "checkpoints/align/run.json"
    rewrite(record, noising=None)
    assert noising_of(read_record(lake, "align") or {}) == Noising()
    run_local(config(lake, steps=6), lake, reporter=Recorder())  # a base that agrees goes on
    rewrite(record, noising=None)
    for changes in (SD_V, {"beta_schedule": "linear"}):
        shutil.copy(scheduler_file(lake), scheduler_file(lake).with_suffix(".kept"))
        rewrite(scheduler_file(lake), **changes)
        scheduler_file(lake).with_suffix(".kept").rename(scheduler_file(lake).with_suffix(".old"))
        with pytest.raises(AltDiffusionError, match=r"begun by an earlier version.*another run name"):
            resolve(config(lake), lake)
        scheduler_file(lake).with_suffix(".old").rename(scheduler_file(lake))


# Parts of a model, and latents


def edit(name: str, **changes: Any) -> Callable[[str], None]:
    return lambda lake: rewrite(f"{lake}/models/base/{name}", **changes)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (edit("unet/config.json", in_channels=9), ("latent channels: is 9", "unet/config.json", "out_channels")),
        (edit("vae/config.json", latent_channels=16), ("latent channels: is 4", "16", "vae/config.json")),
        (edit("vae/config.json", shift_factor=0.1), ("shift_factor", "0.1", "does not add it back")),
        (edit("unet/config.json", cross_attention_dim=32), ("width of the text vectors", "16", "32")),
        (edit("unet/config.json", addition_embed_type="text_time"), ("addition_embed_type", "needs more than")),
        (edit("tokenizer/tokenizer_config.json", model_max_length=6), ("token positions: is 6", "8", "the rows of")),
        (edit("tokenizer/tokenizer_config.json", model_max_length=512), ("pads to 512 positions", "has 8")),
        (
            edit("model_index.json", text_encoder_2=["transformers", "CLIPTextModel"]),
            ("text_encoder_2", "nothing here reads"),
        ),
    ],
)
def test_parts_of_a_base_that_do_not_fit(lake: str, change: Callable[[str], None], parts: tuple[str, ...]) -> None:
    change(lake)
    refused(lake, *parts)


def test_data_that_do_not_fit(lake: str) -> None:
    write_latents(lake, "wide", 20, shape=(16, 4, 4))
    refused(lake, "latent channels: is 4", "16 in the rows of dataset:wide", datasets=[{"name": "wide"}])
    write_latents(lake, "large", 20, shape=(4, 8, 8))
    two = [{"name": "latents"}, {"name": "large"}]
    refused(lake, "shape of latents: is 4 x 4", "8 x 8", "order.buckets", datasets=two)
    assert resolve(config(lake, datasets=two, order={"buckets": True}), lake).datasets
    write_latents(lake, "odd", 20, shape=(4, 5, 4))
    refused(lake, "latents of 4 x 5", "cannot halve 1 times", datasets=[{"name": "odd"}])
    refused(lake, "holds latents, not images", online={"resolution": 16})


def test_latents_of_another_autoencoder_are_refused(lake: str, tmp_path: Path) -> None:
    """Its encoder and scaling decide, not the spelling of its config; a base whose VAE config leaves the scaling out
    has the class's."""
    own = f"{lake}/models/base/vae"

    def latents_of(folder: str, name: str, *, note: bool = True) -> None:
        digest = content_digest(folder)
        if note:
            Autoencoder.of(load_autoencoder(folder)).note(lake, digest)
        write_latents(lake, name, 20, made_by=[Ref("model", "x/vae", digest), Ref("model", "x/tokenizer", "0" * 64)])

    latents_of(own, "own")
    assert resolve(config(lake, datasets=[{"name": "own"}]), lake)

    again = tmp_path / "again"  # stock diffusers writes the same weights under another config.json
    shutil.copytree(own, again)
    rewrite(again / "config.json", _name_or_path="somewhere/else", scaling_factor=0.18215)
    rewrite(f"{own}/config.json", scaling_factor=None)
    assert load_autoencoder(own).config.scaling_factor == 0.18215
    latents_of(str(again), "again")
    assert resolve(config(lake, datasets=[{"name": "again"}]), lake)

    rewrite(again / "config.json", scaling_factor=0.13025)
    latents_of(str(again), "scaled")
    refused(
        lake,
        "scaling of latents: is 0.18215",
        "0.13025",
        "vae/config.json",
        "dataset:scaled",
        datasets=[{"name": "scaled"}],
    )

    other = tmp_path / "other"
    bundle(seed=9).vae.save_pretrained(other)
    latents_of(str(other), "foreign")
    refused(lake, "encoder of the VAE", "dataset:foreign", datasets=[{"name": "own"}, {"name": "foreign"}])
    rewrite(other / "config.json", _name_or_path="unknown")
    latents_of(str(other), "unknown", note=False)
    refused(lake, "has latents of model:x/vae@", "the base's VAE", "run the encode job", datasets=[{"name": "unknown"}])


def test_a_version_that_was_derived_has_the_autoencoder_of_its_origin(lake: str) -> None:
    """A takedown's version names the one before it, and no autoencoder."""
    made_by = Ref("model", "x/vae", "1" * 64)
    first = write_latents(lake, "first", 20, made_by=[made_by, Ref("model", "x/tokenizer", "0" * 64)])
    record = UnitRecord(
        unit_id="u0", index=0, input_digest="0" * 64, rows_in=20, shards=first.shards, rejects=(),
        rejects_by_reason={}, rows_by_language={"en": 20},
    )  # fmt: skip
    after = (
        Lake(lake)
        .dataset("first")
        .publish(kind="latents", records=[record], parents=[first.ref], config={"removed": "x"}, fingerprint="g")
    )
    assert autoencoder_of(after, lake) == autoencoder_of(first, lake) == made_by
    assert autoencoder_of(Lake(lake).version("latents"), lake) is None
    refused(lake, "has latents of model:x/vae@111111111111", datasets=[{"name": "first"}])


def test_a_later_stage_requires_the_models_of_the_one_before(lake: str) -> None:
    encoder = bundle(seed=8)
    save_text_encoder(encoder.text_encoder, encoder.tokenizer, f"{lake}/models/encoder")
    start = {"base": f"{lake}/models/base", "text_encoder": f"{lake}/models/encoder"}
    run_local(config(lake, run="first", steps=1, checkpoint_every=1, start=start), lake, reporter=Recorder())
    later = config(lake, stage="quality", start={"checkpoint": "first"})
    assert resolve(later, lake)
    other = bundle(seed=9)
    save_text_encoder(other.text_encoder, other.tokenizer, f"{lake}/models/encoder")
    for action in (lambda: resolve(later, lake), lambda: export_checkpoint(lake, "first")):
        with pytest.raises(AltDiffusionError, match=r"models/encoder: is \w+ by now, and run first was trained with"):
            action()


def test_a_student_behind_a_v_base_is_exported_and_aligned_as_v(tmp_path: Path) -> None:
    from tests import distillation_lake

    lake = distillation_lake.make_lake(tmp_path)
    rewrite(scheduler_file(lake), **SD_V)
    run_local(distillation_lake.config(lake, steps=2, checkpoint_every=2), lake, reporter=Recorder())
    name = distillation_lake.config(lake).run
    folder = export_checkpoint(lake, name)
    assert read_noising(folder).prediction == "v_prediction"
    write_latents(lake, "latents", 30, shape=tuple(training_lake.SHAPE))
    align = config(lake, start={"base": f"{lake}/models/base", "text_encoder": name})
    assert resolve(align, lake).noising.prediction == "v_prediction"


@pytest.mark.parametrize(
    "settings",
    [
        {"num_train_timesteps": 1000},
        {"steps_offset": 0, "clip_sample": True, "set_alpha_to_one": False},
        {"steps_offset": 3, "timestep_spacing": "linspace"},
        {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True, **SD_V},
        {"num_train_timesteps": 500, "thresholding": True},
        {"prediction_type": "sample"},
    ],
    ids=lambda settings: ",".join(settings),
)
def test_images_of_a_base_are_those_of_its_own_stock_pipeline(lake: str, settings: dict[str, Any]) -> None:
    """Also where its scheduler's config leaves settings out, some of which the pipeline then sets by itself."""
    from diffusers import DiffusionPipeline

    put_scheduler(lake, "DDIMScheduler", beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **settings)
    folder = f"{lake}/models/base"
    assert resolve_model(ModelConfig(folder=folder), lake)
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    sampler = Sampler(models.load_bundle(folder), sampler="ddim", steps=3, guidance_scale=2.0, batch_rows=1)
    theirs = pipeline("cat", latents=sampler.initial_latents([1], 16, 16), num_inference_steps=3,
                      guidance_scale=2.0, height=16, width=16, output_type="np").images  # fmt: skip
    np.testing.assert_array_equal(sampler.draw(["cat"], [1], 16, 16), (theirs * 255).round().astype(np.uint8))


@pytest.mark.parametrize(
    ("kind", "settings", "problem"),
    [
        ("DDIMScheduler", {"num_train_timesteps": "many"}, "another type"),
        ("DDIMScheduler", {"beta_start": "x"}, "another type"),
        ("DDIMScheduler", {"rescale_betas_zero_snr": "false"}, "rescale_betas_zero_snr: 'false'"),
        ("DDIMScheduler", {"trained_betas": [0.1, "x"]}, "another type"),
        ("DDIMScheduler", {"trained_betas": []}, "betas outside of 0 to 1"),
        ("DDIMScheduler", {"beta_start": -0.1, "beta_schedule": "scaled_linear"}, "betas outside of 0 to 1"),
        ("DDIMScheduler", {"beta_end": float("nan")}, "betas outside of 0 to 1"),
        ("DDIMScheduler", {"num_train_timesteps": -3}, "betas outside of 0 to 1"),
        ("DDIMScheduler", {"beta_schedule": "laplace"}, "'laplace', which is unknown"),
        ("DDIMScheduler", {"prediction_type": "flow_prediction"}, "'flow_prediction'"),
        ("FlowMatchEulerDiscreteScheduler", {}, "no noise schedule of betas"),
        ("EDMEulerScheduler", {}, "no noise schedule of betas"),
        ("NoScheduler", {}, "does not name a scheduler"),
    ],
)
def test_a_scheduler_that_means_nothing_here_is_refused_for_training_and_drawing(
    lake: str, kind: str, settings: dict[str, Any], problem: str
) -> None:
    put_scheduler(lake, kind, **settings)
    for check in (
        lambda: resolve(config(lake), lake),
        lambda: resolve_model(ModelConfig(folder=f"{lake}/models/base"), lake),
    ):
        with pytest.raises(AltDiffusionError, match=f"scheduler_config.json.*{problem}"):
            check()


def test_images_of_a_v_export_are_those_of_the_stock_pipeline(lake: str) -> None:
    """Trained from a v base of Euler's kind: stock diffusers and our sampler read the same answer from the export."""
    from diffusers import DDIMScheduler, DiffusionPipeline

    put_scheduler(
        lake, "EulerDiscreteScheduler", beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **SD_V
    )
    run_local(config(lake, steps=2, checkpoint_every=2), lake, reporter=Recorder())
    for weights in ("ema", "raw"):
        folder = export_checkpoint(lake, "align", weights=weights)  # type: ignore[arg-type]
        pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        assert pipeline.scheduler.config.prediction_type == "v_prediction"
        pipeline.scheduler = DDIMScheduler.from_config(
            pipeline.scheduler.config, clip_sample=False, set_alpha_to_one=False, timestep_spacing="leading"
        )  # linspace is only Euler's default; the sampler ddim has Stable Diffusion's spacing
        sampler = Sampler(models.load_bundle(folder), sampler="ddim", steps=3, guidance_scale=2.0, batch_rows=1)
        theirs = pipeline("cat", latents=sampler.initial_latents([1], 16, 16), num_inference_steps=3,
                          guidance_scale=2.0, height=16, width=16, output_type="np").images  # fmt: skip
        drawn = sampler.draw(["cat"], [1], 16, 16)
        np.testing.assert_array_equal(drawn, (theirs * 255).round().astype(np.uint8))
