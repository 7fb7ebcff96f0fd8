"""Models of the hub as start points, against a real server on loopback: what is fetched, what is refused, and how."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from altdiffusion.diffusion import models
from altdiffusion.diffusion.folder import content_digest
from altdiffusion.diffusion.hub import HubId, fetch
from altdiffusion.errors import AltDiffusionError
from altdiffusion.training.launch_local import run_local
from altdiffusion.training.run.resolve import resolve
from tests.hub_server import REVISION, Hub, serve
from tests.training_lake import Recorder, bundle, config

ID = f"hf://someone/small-diffusion@{REVISION}"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch off the pauses of huggingface_hub between its attempts, which prove nothing here."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Yield a small Stable Diffusion repository with the clutter of a real one."""
    repository = tmp_path / "repository"
    models.save_bundle(bundle(seed=3), repository)
    (repository / "README.md").write_text("---\nlicense: openrail++\ntags: [x]\n---\n# A small model\n")
    (repository / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"another precision")
    (repository / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (repository / "v2-1_512-ema-pruned.safetensors").write_bytes(b"all in one file")
    (repository / "feature_extractor").mkdir()
    (repository / "feature_extractor" / "preprocessor_config.json").write_text("{}")
    index = json.loads((repository / "model_index.json").read_text())
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    index["safety_checker"] = [None, None]
    (repository / "model_index.json").write_text(json.dumps(index))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serve(Hub(repository)) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


def test_a_hub_model_is_fetched_once_and_trained_from(hub: Hub, lake: str) -> None:
    settings = config(lake, steps=1, checkpoint_every=1, start={"base": ID})
    run = resolve(settings, lake)
    folder = Path(run.base)
    assert folder == Path(lake) / "models" / "someone--small-diffusion--0123456789ab"
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"model_index.json", "unet/diffusion_pytorch_model.safetensors", "lineage.json"} <= there
    assert not {name for name in there if "fp16" in name or name.endswith(".bin") or "pruned" in name}
    assert "feature_extractor/preprocessor_config.json" not in there
    lineage = json.loads((folder / "lineage.json").read_text())
    assert (lineage["hub"], lineage["licence"]) == (ID, "openrail++")
    assert lineage["content"] == content_digest(str(folder))

    asked = len(hub.requests)
    assert resolve(settings, lake).fingerprint == run.fingerprint
    found = run_local(settings, lake, reporter=Recorder())
    assert found.step == 1
    assert len(hub.requests) == asked, "the hub was asked again"
    loaded = models.load_bundle(run.base).unet.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in bundle(seed=3).unet.state_dict().items())
    assert run.models[0].name == "someone--small-diffusion--0123456789ab"


def test_the_content_decides_and_not_the_way_it_came(hub: Hub, lake: str, tmp_path: Path) -> None:
    run = resolve(config(lake, start={"base": ID}), lake)
    copy = tmp_path / "a copy"
    Path(run.base).rename(copy)
    (copy / "lineage.json").unlink()
    assert resolve(config(lake, start={"base": str(copy)}), lake).fingerprint == run.fingerprint


def test_a_damaged_copy_in_the_lake_is_refused(hub: Hub, lake: str) -> None:
    settings = config(lake, start={"base": ID})
    weights = Path(resolve(settings, lake).base) / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(AltDiffusionError, match=r"was changed or damaged.*remove the folder"):
        resolve(settings, lake)


@pytest.mark.parametrize("uri", ["hf://someone/small-diffusion", "hf://someone/small-diffusion@main", "hf://a@b"])
@pytest.mark.parametrize("key", ["base", "text_encoder"])
def test_an_unpinned_model_is_refused_with_the_remedy(lake: str, uri: str, key: str) -> None:
    start = {"base": f"{lake}/models/base"} | {key: uri}
    with pytest.raises(AltDiffusionError, match=r"(?s)without its commit.*@<commit> with the 40 hex digits") as caught:
        config(lake, start=start)
    assert f"start.{key}" in caught.value.what


@pytest.mark.parametrize(
    ("status", "error", "problem", "remedy"),
    [
        (404, "RepoNotFound", "is no longer on the hub, or asks for a token", "use a mirror"),
        (410, "", "is no longer on the hub", "use a mirror"),
        (401, "RepoNotFound", "is no longer on the hub, or asks for a token", "HF_TOKEN"),
        (403, "GatedRepo", "asks to accept its terms", "HF_TOKEN"),
        (404, "RevisionNotFound", "has no such commit", "40 digits"),
        (500, "", "cannot be fetched .the hub answered 500.", "again later"),
    ],
)
def test_what_the_hub_refuses_is_reported(
    hub: Hub, lake: str, status: int, error: str, problem: str, remedy: str
) -> None:
    hub.status, hub.error = status, error
    with pytest.raises(AltDiffusionError, match=rf"(?s)hub model {ID}.*{problem}.*{remedy}"):
        resolve(config(lake, start={"base": ID}), lake)
    assert [path.name for path in (Path(lake) / "models").iterdir()] == ["base"]


def test_a_missing_revision_is_named(hub: Hub, lake: str) -> None:
    other = ID.replace("0123", "3210")
    with pytest.raises(AltDiffusionError, match="has no such commit"):
        resolve(config(lake, start={"base": other}), lake)


def test_no_network_is_reported(lake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(AltDiffusionError, match=r"(?s)the hub cannot be reached.*HF_ENDPOINT.*local copy"):
        resolve(config(lake, start={"base": ID}), lake)


def test_offline_is_reported(lake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AltDiffusionError, match=r"(?s)not in the lake yet.*unset HF_HUB_OFFLINE"):
        resolve(config(lake, start={"base": ID}), lake)


def test_a_damaged_file_is_not_taken(hub: Hub, lake: str) -> None:
    hub.spoiled = {"unet/diffusion_pytorch_model.safetensors"}
    with pytest.raises(AltDiffusionError, match=r"unet/diffusion_pytorch_model\.safetensors: arrived damaged"):
        fetch(HubId.parse(ID), f"{lake}/models", "base")
    hub.spoiled = {"scheduler/scheduler_config.json"}
    with pytest.raises(AltDiffusionError, match="damaged"):
        fetch(HubId.parse(ID), f"{lake}/models", "base")
    assert [path.name for path in (Path(lake) / "models").iterdir()] == ["base"]


@pytest.mark.parametrize(
    ("gone", "problem"),
    [
        ("model_index.json", "holds no model_index.json"),
        ("vae/diffusion_pytorch_model.safetensors", "holds no vae in safetensors"),
        ("scheduler/scheduler_config.json", "lacks tokenizer or scheduler"),
    ],
)
def test_an_unfit_repository_is_refused_before_anything_is_fetched(
    hub: Hub, lake: str, gone: str, problem: str
) -> None:
    (hub.folder / gone).unlink()
    with pytest.raises(AltDiffusionError, match=problem):
        resolve(config(lake, start={"base": ID}), lake)
    assert not [request for request in hub.requests if "/resolve/" in request]
