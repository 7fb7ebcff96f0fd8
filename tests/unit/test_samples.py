"""Samples of a run's checkpoints: where they are drawn."""

from __future__ import annotations

from dataclasses import replace

import pytest

from altdiffusion.config import load_config
from altdiffusion.generation.settings import PromptsConfig
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
