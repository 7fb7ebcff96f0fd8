"""Samples of a run's checkpoints: where they are drawn."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from altdiffusion.config import load_config
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.settings import PromptsConfig
from jobs import checkpoint_watch
from pipelines.common import Workers
from pipelines.train import SamplesConfig, TrainJobConfig, sample_pipeline_steps

PROMPTS = PromptsConfig(file="prompts.jsonl")


def test_a_pool_of_gpus_draws_them_where_one_is_named() -> None:
    config = load_config(TrainJobConfig, "jobs/configs/m18/quality.yaml", [])
    workers = Workers(max=8, gpus=1)
    samples = SamplesConfig(prompts=PROMPTS, fonts="", device="cuda", dtype="bfloat16", workers=workers)
    drawn = sample_pipeline_steps(replace(config, samples=samples), 5)[-1]
    assert (drawn.pool.max_size, drawn.resources.num_gpus) == (8, 1)
    assert drawn.output.settings["generate"]["device"] == "cuda"
    assert drawn.output.settings["generate"]["dtype"] == "bfloat16"


@pytest.mark.parametrize("workers", [None, Workers()])
def test_a_gpu_that_nobody_brings_is_refused(workers: Workers | None) -> None:
    with pytest.raises(ValueError, match="device: needs workers that have GPUs"):
        SamplesConfig(prompts=PROMPTS, fonts="", device="cuda", workers=workers)


def test_drawing_between_needs_workers_of_its_own() -> None:
    with pytest.raises(ValueError, match="where: between needs workers"):
        SamplesConfig(prompts=PROMPTS, fonts="", where="between")
    overrides = ["execution.backend=inline"]
    with pytest.raises(AltDiffusionError, match="between needs the workers of Ray"):
        load_config(TrainJobConfig, "jobs/configs/m18/quality.yaml", overrides)
    with pytest.raises(AltDiffusionError, match=r"samples\.every: .* not a multiple of train\.checkpoint_every"):
        load_config(TrainJobConfig, "jobs/configs/m18/quality.yaml", ["samples.every=750"])


def test_which_steps_are_drawn() -> None:
    config = load_config(TrainJobConfig, "jobs/configs/m18/quality.yaml", [])
    assert [step for step in range(0, 12_000, 500) if config.draws(step)] == [0, 5000, 10_000]
    assert config.draws_at_end(config.train.steps) and not config.draws_at_end(500)
    assert config.samples is not None
    kept = replace(config, samples=replace(config.samples, every=None))
    assert [step for step in range(0, 25_000, 500) if kept.draws(step)] == [0, 10_000, 20_000]  # keep_every
    assert kept.draws_at_end(500)
    at_end = replace(config, samples=replace(config.samples, where="end"))
    assert not at_end.draws(5000) and at_end.draws_at_end(5000)


def test_a_drawing_that_fails_ends_nothing_and_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest step is drawn first; the threads end with the block."""
    config = load_config(TrainJobConfig, "jobs/configs/m18/quality.yaml", [])
    drawn: list[int] = []

    def draw(config: TrainJobConfig, session: Any, step: int) -> None:
        drawn.append(step)
        if step == 5000:
            raise RuntimeError("a worker was lost")

    monkeypatch.setattr(checkpoint_watch, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(checkpoint_watch, "export_for_samples", lambda *_: None)
    monkeypatch.setattr(checkpoint_watch, "log_samples", draw)
    monkeypatch.setattr(checkpoint_watch, "record_checkpoints", lambda *_: None)
    monkeypatch.setattr(checkpoint_watch.checkpoints, "steps", lambda *_: [500, 5000, 10_000])
    has_image = lambda _, step: step in drawn and step != 5000  # noqa: E731
    session: Any = SimpleNamespace(lake=SimpleNamespace(uri=""), run=SimpleNamespace(has_image=has_image))
    with checkpoint_watch.CheckpointWatch(config, session):
        end = time.monotonic() + 60
        while len(drawn) < 3 and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.1)
    assert drawn == [10_000, 5000, 0]
    assert not [thread for thread in threading.enumerate() if thread.name in ("samples", "checkpoint-watch")]
