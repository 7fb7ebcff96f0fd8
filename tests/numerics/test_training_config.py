"""Invalid training configs are refused by key, with a remedy; what is operational is not in the fingerprint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from altdiffusion.config import fingerprint
from altdiffusion.errors import AltDiffusionError
from altdiffusion.training.config import WorkersConfig
from tests.training_lake import config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch": 10}, r"key global_batch: value 10 does not divide .* micro-batches of 4"),
        ({"workers": {"count": 3}}, r"use a multiple of 12, like 12, or change workers.count or micro_batch"),
        ({"keep_last": 1}, r"key keep_last: value 1 must be at least 2"),
        ({"keep_every": 4}, r"key keep_every: value 4 must be a multiple of checkpoint_every"),
        ({"caption_drop": 1.5}, r"key caption_drop: value 1.5 must be between 0 and 1"),
        ({"steps": 0}, r"key steps: value 0 must be at least 1"),
        ({"run": "A b"}, r"key run: value 'A b' is not a usable name"),
        ({"datasets": []}, r"key datasets: .* name at least one dataset"),
        ({"datasets": [{"name": "a", "weight": 1}, {"name": "b"}]}, r"some have a weight and some have none"),
        ({"datasets": [{"name": "a", "weight": 0}]}, r"datasets.*weight.* must be positive"),
        ({"datasets": [{"name": "a", "weight": float("nan")}]}, r"datasets.*weight.* (finite|not a)"),
        ({"datasets": [{"name": "a", "weight": float("inf")}]}, r"datasets.*weight.* (finite|not a)"),
        ({"start": {"base": "x", "checkpoint": "y"}}, r"key start.base: .* exactly one of base and checkpoint"),
        ({"start": {"checkpoint": "y", "text_encoder": "z"}}, r"a checkpoint brings its own text encoder"),
        ({"optimizer": {"lr": 0}}, r"key optimizer.lr: value 0.0 must be positive"),
        ({"optimizer": {"lr_rate": 1e-3}}, r"unknown key.*did you mean optimizer.lr"),
        ({"trainable": "vk"}, r"key trainable: value 'vk' is not one of the choices"),
        ({"workers": {"gpus": 2}}, r"key workers.gpus: value 2.0 must be 0 or 1"),
    ],
)
def test_invalid_values_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AltDiffusionError, match=message):
        config("/lake", **changes)


def test_the_fingerprint_covers_what_changes_the_weights_and_nothing_else() -> None:
    base = config("/lake")
    elsewhere = config(
        "/other/lake", steps=99, micro_batch=2, checkpoint_every=7, keep_last=9, log_every=1, workers={"count": 4}
    )
    assert fingerprint(base) == fingerprint(elsewhere)
    for changes in ({"seed": 1}, {"precision": "bf16"}, {"global_batch": 16}, {"trainable": "kv"}):
        assert fingerprint(config("/lake", **changes)) != fingerprint(base)


def test_accumulation_is_derived() -> None:
    settings = config("/lake", global_batch=3840, micro_batch=10, workers={"count": 64})
    assert settings.accumulation == 6
    assert settings.accumulation_of(32) == 12
    assert replace(settings, workers=WorkersConfig(count=1)).accumulation == 384
