"""The estimate against counts made in another way: real tensors, published numbers, closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from altdiffusion.diffusion import models
from altdiffusion.training.estimate import best_interval_s, estimate, kept_bytes
from tests import training_lake


@pytest.mark.parametrize("which", ["kv", "all"])
def test_kept_bytes_are_those_of_a_real_pass(which: models.Trains) -> None:
    """On the CPU the same storages are kept, where attention is asked to keep what fused kernels keep."""
    config = training_lake.bundle().unet.config
    meta = models.build_unet(dict(config), "meta").train()
    models.trainable_parameters(meta, which)
    one, two = (kept_bytes(meta, batch, 4, 16, tokens=8) for batch in (1, 2))
    assert 0 < one < two < 2.1 * one

    real = models.build_unet(dict(config)).train()
    models.trainable_parameters(real, which)
    weights = {parameter.untyped_storage()._cdata for parameter in real.parameters()}
    held: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            held[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = real(torch.randn(2, 4, 4, 4), torch.zeros(2, dtype=torch.int64), torch.randn(2, 8, 16), return_dict=False)
    del out
    assert math.isclose(sum(storage.nbytes() for storage in held.values()), two, rel_tol=0.05)


def test_published_counts(tmp_path: Path) -> None:
    settings = training_lake.config(training_lake.make_lake(tmp_path), trainable="kv", precision="bf16")
    cost = estimate(settings, 256, None, None)
    assert (cost.parameters, cost.trained) == (865_910_724, 25_559_040)
    assert cost.checkpoint == 4 * 865_910_724 + 12 * 25_559_040
    assert cost.training_state == 16 * 25_559_040
    whole = estimate(training_lake.replace(settings, trainable="all"), 512, None, None)
    assert whole.trained == whole.parameters and whole.activations > 4 * cost.activations


def test_young_interval() -> None:
    assert math.isclose(best_interval_s(10.0, 72_000.0), 1200.0)
