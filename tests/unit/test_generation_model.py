"""Model folders as people have them: variants, shards, pickles, caches of the hub, other pipelines, parts that do not
fit; each is drawn with or refused by name before anything is drawn, the same in the dry run and the run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import constants

from altdiffusion.config import from_dict
from altdiffusion.constraints import Invalid
from altdiffusion.diffusion import models
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.model import ignored_parts, resolve_model
from altdiffusion.generation.sampler import Sampler
from altdiffusion.generation.settings import ModelConfig
from jobs import generate as generate_job
from jobs.harness import main
from tests import generation_lake
from tests.hub_server import REVISION, Hub, serve

HUB_ID = f"hf://someone/small-diffusion@{REVISION}"
NETWORKS = ("unet", "vae", "text_encoder")


@pytest.fixture
def lake(tmp_path: Path) -> str:
    return generation_lake.make_lake(tmp_path, prompts=2)


@pytest.fixture
def base(lake: str) -> Path:
    return Path(lake) / "models" / "base"


def draw(folder: str | Path) -> np.ndarray[Any, Any]:
    sampler = Sampler(models.load_bundle(folder), sampler="ddim", steps=2, guidance_scale=2.0, batch_rows=1)
    return sampler.draw(["cat"], [1], 16, 16)


def located(folder: str | Path, lake: str) -> str:
    return resolve_model(ModelConfig(folder=str(folder)), lake).uri


def rewrite(path: Path, **changes: Any) -> None:
    tree = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in tree.items() if value is not None}))


def halve(folder: Path, save: Callable[[Any, Path], None]) -> None:
    """Replace the weights of a folder by what `save` writes of them in float16."""
    bundle = models.load_bundle(folder, dtype=torch.float16)
    for part in NETWORKS:
        for path in (folder / part).glob("*safetensors*"):
            path.unlink()
        save(getattr(bundle, part), folder / part)


def rounded(folder: Path, target: Path) -> Path:
    """Write the folder with plain weights that are those of float16, for comparison."""
    shutil.copytree(folder, target)
    halve(target, lambda network, part: network.to(torch.float32).save_pretrained(part))
    return target


def dry_run(lake: str, tmp_path: Path, **generate: Any) -> int:
    """Return the exit status of the job's dry run."""
    path = tmp_path / "job.yaml"
    tree = {"prompts": {"file": f"{lake}/prompts.jsonl"}, "batch_rows": 4, "rows_per_unit": 4, "steps": 2} | generate
    path.write_text(yaml.safe_dump({"lake": lake, "generate": tree}))
    return main(generate_job.JOB, ["--config", str(path), "--dry-run"])


@pytest.mark.parametrize("size", ["10GB", "4KB"])
def test_weights_in_a_variant_are_read_where_there_are_no_others(
    lake: str, base: Path, tmp_path: Path, size: str
) -> None:
    """Stable Diffusion's fp16 repositories hold `*.fp16.safetensors`, whole or in shards with their index."""
    wanted = draw(rounded(base, tmp_path / "rounded"))
    halve(base, lambda network, part: network.save_pretrained(part, variant="fp16", max_shard_size=size))
    names = {path.name for part in NETWORKS for path in (base / part).glob("*safetensors*")}
    assert all("fp16" in name for name in names)
    assert (len(names) > 2) == (size == "4KB")
    assert located(base, lake) == str(base)
    np.testing.assert_array_equal(draw(base), wanted)


def test_shards_draw_what_the_whole_file_draws(base: Path) -> None:
    wanted, bundle = draw(base), models.load_bundle(base)
    for part in NETWORKS:
        for path in (base / part).glob("*.safetensors"):
            path.unlink()
        getattr(bundle, part).save_pretrained(base / part, max_shard_size="4KB")
        assert len(list((base / part).glob("*.safetensors"))) > 1
    np.testing.assert_array_equal(draw(base), wanted)


def test_full_precision_comes_before_a_variant_and_other_weights_are_no_variant(base: Path) -> None:
    wanted, unet = draw(base), base / "unet"
    (unet / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"another precision")
    (unet / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"other weights")
    np.testing.assert_array_equal(draw(base), wanted)
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    (unet / "diffusion_pytorch_model.bf16.safetensors").write_bytes(b"another precision")
    with pytest.raises(AltDiffusionError, match=r"bf16\.safetensors and .*fp16\.safetensors.*keep only one"):
        models.load_bundle(base)
    for name in ("fp16", "bf16"):
        (unet / f"diffusion_pytorch_model.{name}.safetensors").unlink()
    with pytest.raises(AltDiffusionError, match=r"only diffusion_pytorch_model\.non_ema\.safetensors"):
        models.load_bundle(base)


def test_pickles_are_the_named_reason_and_are_not_opened(
    lake: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (base / "unet" / "diffusion_pytorch_model.safetensors").rename(base / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(AltDiffusionError, match=r"unet: holds .*only as pickles \(diffusion_pytorch_model\.bin\)"):
        models.load_bundle(base)
    assert dry_run(lake, tmp_path, model={"folder": str(base)}) == 2
    assert "holds more than tensors and plain values is not opened" in capsys.readouterr().err


def test_a_folder_of_the_hubs_cache_is_its_one_commit(lake: str, base: Path, tmp_path: Path) -> None:
    """Its files are links into `blobs`."""
    wanted, cache = draw(base), tmp_path / "hub" / "models--someone--small-diffusion"
    commit = cache / "snapshots" / REVISION
    for path in [path for path in base.rglob("*") if path.is_file()]:
        blob, link = cache / "blobs" / str(len(list(cache.glob("blobs/*")))), commit / path.relative_to(base)
        blob.parent.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link.symlink_to(blob)
    assert located(cache, lake) == located(commit, lake) == str(commit)
    plain = resolve_model(ModelConfig(folder=str(base)), lake)
    assert resolve_model(ModelConfig(folder=str(cache)), lake).content == plain.content
    np.testing.assert_array_equal(draw(commit), wanted)
    with pytest.raises(AltDiffusionError, match=r"hub.*holds 1 models.*models--someone--small-diffusion"):
        located(cache.parent, lake)
    (cache / "snapshots" / ("f" * 40)).mkdir()
    with pytest.raises(AltDiffusionError, match=rf"2 commits.*give one of .*snapshots/{REVISION}"):
        located(cache, lake)


@pytest.fixture
def hub(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    repository = tmp_path / "repository"
    shutil.copytree(base, repository)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serve(Hub(repository)) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


def test_a_model_of_the_hub_is_fetched_once_and_drawn_with(
    lake: str, base: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    halve(hub.folder, lambda network, part: network.save_pretrained(part, variant="fp16", max_shard_size="4KB"))
    (hub.folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    assert dry_run(lake, tmp_path, model={"folder": HUB_ID}) == 0
    assert "fetched and checked when the job starts" in capsys.readouterr().out
    assert not hub.requests
    version = generation_lake.generate(lake, generation_lake.config(lake, model={"folder": HUB_ID}))
    assert str(version.manifest.parents[-1]).startswith(f"model:someone--small-diffusion--{REVISION[:12]}@")
    folder = Path(lake) / "models" / f"someone--small-diffusion--{REVISION[:12]}"
    assert not list(folder.rglob("*.bin"))
    np.testing.assert_array_equal(draw(folder), draw(rounded(base, tmp_path / "rounded")))
    fetched = len(hub.requests)
    assert located(HUB_ID, lake) == str(folder) and len(hub.requests) == fetched
    assert dry_run(lake, tmp_path, model={"folder": HUB_ID}) == 0


def test_a_model_of_the_hub_needs_its_commit() -> None:
    for text in ("hf://someone/small-diffusion", "hf://someone/small-diffusion@main"):
        with pytest.raises(Invalid, match=r"folder: .*without its commit.*someone/small-diffusion@<commit>"):
            ModelConfig(folder=text)


def test_a_hub_model_without_weights_is_refused_before_it_is_fetched(lake: str, hub: Hub) -> None:
    (hub.folder / "vae" / "diffusion_pytorch_model.safetensors").rename(hub.folder / "vae" / "weights.ckpt")
    with pytest.raises(AltDiffusionError, match=r"holds no vae in safetensors or \.bin"):
        located(HUB_ID, lake)
    assert not [request for request in hub.requests if "/resolve/" in request]


def test_a_safety_checker_is_not_used_and_the_dry_run_states_it(
    lake: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = draw(base)
    rewrite(
        base / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        image_encoder=[None, None],
    )
    model = resolve_model(ModelConfig(folder=str(base)), lake)
    assert ignored_parts(model) == ["feature_extractor", "safety_checker"]
    assert dry_run(lake, tmp_path, model={"folder": str(base)}) == 0
    assert "not used  feature_extractor, safety_checker" in capsys.readouterr().out
    np.testing.assert_array_equal(draw(base), wanted)


def change_index(base: Path, **changes: Any) -> None:
    rewrite(base / "model_index.json", **changes)


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "xl": (
        lambda base: change_index(
            base, _class_name="StableDiffusionXLPipeline", text_encoder_2=["transformers", "CLIPTextModel"]
        ),
        "describes a StableDiffusionXLPipeline with text_encoder_2.*use a StableDiffusionPipeline",
    ),
    "inpainting": (
        lambda base: change_index(base, _class_name="StableDiffusionInpaintPipeline"),
        "describes a StableDiffusionInpaintPipeline",
    ),
    "flux": (
        lambda base: change_index(base, _class_name="FluxPipeline", unet=None, transformer=["diffusers", "x"]),
        "describes a FluxPipeline with transformer",
    ),
    "index is a list": (lambda base: (base / "model_index.json").write_text("[]") and None, "is not a mapping"),
    "no index": (lambda base: (base / "model_index.json").unlink(), "holds no model_index.json"),
    "no scheduler": (lambda base: shutil.rmtree(base / "scheduler"), "scheduler_config.json: is missing"),
    "no unet": (lambda base: shutil.rmtree(base / "unet"), "unet: holds no config.json"),
    "unet of inpainting": (
        lambda base: rewrite(base / "unet" / "config.json", in_channels=9),
        "in_channels: is 9, but latent_channels in vae/config.json is 4",
    ),
    "unet of another text encoder": (
        lambda base: rewrite(base / "unet" / "config.json", cross_attention_dim=32),
        "cross_attention_dim: is 32, but the text encoder gives vectors of width 16",
    ),
    "unet of a consistency model": (
        lambda base: rewrite(base / "unet" / "config.json", time_cond_proj_dim=256),
        "sets time_cond_proj_dim",
    ),
    "vae with a shift": (
        lambda base: rewrite(base / "vae" / "config.json", shift_factor=0.1),
        "shift_factor: is 0.1",
    ),
    "text encoder of another form": (
        lambda base: change_index(base, text_encoder=["transformers", "T5EncoderModel"]),
        "names the text encoder transformers.T5EncoderModel",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_folder_that_cannot_draw_is_refused_at_the_plan_and_in_the_dry_run(
    lake: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    damage, problem = BAD[case]
    damage(base)
    with pytest.raises(AltDiffusionError, match=problem) as error:
        located(base, lake)
    assert dry_run(lake, tmp_path, model={"folder": str(base)}) == 2
    assert str(error.value).split("\n")[0][:60] in capsys.readouterr().err


def test_a_tokenizer_of_another_encoder_fails_the_dry_run_and_the_run(
    lake: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its vocabulary is opened by the dry run and at the start of the work, before the first image."""
    path = base / "tokenizer" / "tokenizer_config.json"
    rewrite(path, model_max_length=77)
    problem = "pads to 77 positions, its text encoder has 8"
    assert dry_run(lake, tmp_path, model={"folder": str(base)}) == 2
    assert problem in capsys.readouterr().err
    with pytest.raises(AltDiffusionError, match=problem):
        generation_lake.generate(lake, generation_lake.config(lake))


def test_the_folder_above_the_models_names_them(lake: str, base: Path) -> None:
    with pytest.raises(AltDiffusionError, match=r"holds no model_index\.json.*give one of the folders in it: base"):
        located(base.parent, lake)
    with pytest.raises(AltDiffusionError, match=r"one network of a model folder.*the one with model_index"):
        located(base / "unet" / "diffusion_pytorch_model.safetensors", lake)


@pytest.mark.parametrize("steps", [400, 1000])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp", "euler", "pndm", "unipc"])
def test_steps_that_the_schedule_cannot_draw_fail_the_dry_run_and_the_run(
    lake: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], sampler: str, steps: int
) -> None:
    assert dry_run(lake, tmp_path, model={"folder": str(base)}, steps=steps, sampler=sampler) == 2
    assert f"steps {steps} with sampler {sampler}" in capsys.readouterr().err
    with pytest.raises(AltDiffusionError, match=rf"steps {steps} with sampler {sampler}.*(999|1000)"):
        generation_lake.generate(lake, generation_lake.config(lake, sampler=sampler, steps=steps))
    assert not (Path(lake) / "datasets" / "drawn" / "versions").exists()


def test_names_of_datasets_are_checked_with_the_config() -> None:
    from pipelines.generate import GenerateJobConfig

    tree = {"lake": "lake", "generate": {"model": {"folder": "m"}, "prompts": {"file": "p.jsonl"}}}
    assert from_dict(GenerateJobConfig, tree)
    for changes, key in (
        ({"generations": "Gallery"}, "generations"),
        ({"prompts": "a/b"}, "prompts"),
        ({"prompts": "same", "generations": "same"}, "generations"),
    ):
        with pytest.raises(AltDiffusionError, match=rf"key {key}: "):
            from_dict(GenerateJobConfig, tree | changes)


def test_a_gpu_that_is_not_there_is_named(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(AltDiffusionError, match="device cuda: is not there"):
        models.load_bundle(base, "cuda")


def test_a_relative_folder_becomes_absolute_because_workers_run_elsewhere(
    lake: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    assert located("base", lake) == str(base)
    assert resolve_model(ModelConfig(folder="base"), lake).ref.name == "base"
