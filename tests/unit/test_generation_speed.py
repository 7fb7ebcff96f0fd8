"""Settings of speed: what is refused and when, and what they decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from altdiffusion.config import fingerprint, from_dict
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.generate_work import generation_units
from altdiffusion.generation.image_request import Request, batches
from altdiffusion.generation.image_rows import image_rows
from altdiffusion.generation.loading import make_sampler
from altdiffusion.generation.model import check_speed, resolve_model
from altdiffusion.generation.on_host import OnHost
from altdiffusion.generation.passes import prepare
from altdiffusion.generation.settings import GenerateConfig
from altdiffusion.generation.speed import SpeedConfig, check_compiler
from tests import generation_lake, training_lake


def config(**changes: Any) -> GenerateConfig:
    return from_dict(GenerateConfig, {"model": {"folder": "m"}, "prompts": {"file": "p"}, **changes})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"steps": 4, "speed": {"deep_cache": 5}}, "speed.deep_cache.*more than steps .4."),
        ({"speed": {"deep_cache": 0}}, "deep_cache.*at least 1"),
        ({"speed": {"cuda_graphs": True}}, "cuda_graphs.*compiler"),
        ({"speed": {"cuda_graphs": True, "compile": True}}, "cuda_graphs.*device is cpu"),
        ({"speed": {"tf32": "all"}}, "tf32.*device is cpu"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_config(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(AltDiffusionError, match=problem):
        config(**changes)


def test_the_defaults_leave_fingerprints_and_row_keys_as_they_were_and_others_change_both(tmp_path: Path) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=2)
    plain = generation_lake.config(lake)
    prompts, model = generation_lake.import_prompts(lake, plain).read_shard(0), resolve_model(plain.model, lake)

    def keys(settings: GenerateConfig) -> list[str]:
        return list(image_rows(prompts, 0, 2, settings, model)["row_key"].to_pylist())

    same = generation_lake.config(lake, speed={"deep_cache": 1, "tf32": "convolutions"})
    assert (fingerprint(same), keys(same)) == (fingerprint(plain), keys(plain))
    for speed in ({"deep_cache": 2}, {"channels_last": True}, {"compile": True}):
        other = generation_lake.config(lake, speed=speed)
        assert fingerprint(other) != fingerprint(plain)
        assert not set(keys(other)) & set(keys(plain))


def test_a_prompt_with_fewer_steps_than_the_interval_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=1)
    file = tmp_path / "own.jsonl"
    file.write_text('{"id": "a", "language": "en", "prompt": "x", "seed": 1, "width": 16, "height": 16, "steps": 2}\n')
    settings = generation_lake.config(lake, steps=6, prompts={"file": str(file)}, speed={"deep_cache": 3})
    prompts = generation_lake.import_prompts(lake, settings)
    with pytest.raises(AltDiffusionError, match=r"deep_cache 3.*more than the 2 steps"):
        generation_units(prompts, resolve_model(settings.model, lake), settings)


def test_compile_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(AltDiffusionError, match="no-such-compiler"):
        check_compiler(SpeedConfig(compile=True), "cpu")
    check_compiler(SpeedConfig(), "cpu")
    monkeypatch.setenv("CXX", "true")
    check_compiler(SpeedConfig(compile=True), "cpu")


def test_rows_share_a_batch_whatever_their_guidance_but_not_across_samplers_or_steps() -> None:
    def row(**changes: Any) -> Request:
        given: dict[str, Any] = {
            "prompt": "x", "seed": 1, "width": 16, "height": 16, "steps": 4, "guidance_scale": 3.0, "sampler": "ddim",
        }  # fmt: skip
        return Request(**(given | changes))

    rows = [row(), row(steps=5), row(guidance_scale=9.0), row(sampler="euler"), row(guidance_scale=1.0), row(height=24)]
    assert list(batches(rows, 8)) == [[0, 2], [1], [3], [4], [5]]


def test_a_batch_is_read_after_the_first_step_of_the_next_one_is_issued(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device would work on that step meanwhile; and no batch is more than one step ahead of what is kept."""
    events: list[str] = []
    read = OnHost.read

    def noted(self: OnHost) -> Any:
        events.append("read")
        return read(self)

    monkeypatch.setattr(OnHost, "read", noted)
    model = training_lake.bundle()
    model.unet.register_forward_pre_hook(lambda *_: events.append("step"))
    sampler = make_sampler(model, config(steps=3, batch_rows=1, guidance_scale=1.0))
    rows = [
        Request(prompt="x", seed=i, width=16, height=16, steps=3, guidance_scale=1.0, sampler="ddim") for i in range(3)
    ]
    for places, drawn in sampler.draw_rows(rows):
        events.append(f"kept {places[0]}")
        assert not drawn[0].problem
    one = ["step"] * 3
    assert events == [*one, "step", "read", "kept 0", *one[1:], "step", "read", "kept 1", *one[1:], "read", "kept 2"]


def test_channels_last_reaches_both_networks() -> None:
    model = training_lake.bundle()
    prepare(model, SpeedConfig(channels_last=True))
    for network in (model.unet, model.vae):
        weights = [one for one in network.parameters() if one.dim() == 4 and one.shape[1] > 1 and one.shape[2] > 1]
        assert weights
        assert all(one.is_contiguous(memory_format=torch.channels_last) for one in weights)


def test_a_unet_that_deep_cache_does_not_know_is_refused_at_plan_time(tmp_path: Path) -> None:
    lake = generation_lake.make_lake(tmp_path, prompts=1)
    settings = generation_lake.config(lake, speed={"deep_cache": 2})
    model = resolve_model(settings.model, lake)
    check_speed(model, settings)
    file = Path(lake, "models", "base", "unet", "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"class_embed_type": "timestep"}))
    with pytest.raises(AltDiffusionError, match="class_embed_type timestep"):
        check_speed(model, settings)
