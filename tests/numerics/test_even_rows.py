"""A few rows are drawn in a batch of their own size, with the bits of a full batch."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from altdiffusion.config import from_dict
from altdiffusion.diffusion import models
from altdiffusion.generation.loading import make_sampler
from altdiffusion.generation.sampler import Sampler
from altdiffusion.generation.settings import GenerateConfig
from tests.numerics.test_sampler import PROMPTS, SEEDS, bundle

__all__ = ["bundle"]


def test_one_prompt_is_drawn_alone_with_the_bits_of_a_full_batch(
    bundle: models.ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    original = Sampler._batch

    def batch(self: Sampler, rows: Any) -> Any:
        sizes.append(len(rows))
        return original(self, rows)

    monkeypatch.setattr(Sampler, "_batch", batch)
    settings = {"steps": 10, "guidance_scale": 3.0, "batch_rows": 32}
    full = Sampler(bundle, **settings).draw(PROMPTS[:32], SEEDS[:32], 32, 32)  # nothing is filled up here
    tree = settings | {"model": {"folder": "none"}, "prompts": {"file": "none"}}
    own = dataclasses.replace(bundle, unet=copy.deepcopy(bundle.unet), vae=copy.deepcopy(bundle.vae))
    ours = make_sampler(own, from_dict(GenerateConfig, tree))
    np.testing.assert_array_equal(ours.draw(PROMPTS[:32], SEEDS[:32], 32, 32), full)
    for count in (1, 3, 7, 11):
        np.testing.assert_array_equal(ours.draw(PROMPTS[:count], SEEDS[:count], 32, 32), full[:count])
    assert sizes[:2] == [32, 32]
    # Measured on x86-64 with oneDNN; elsewhere a proof may fail, and the size is larger then.
    if torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        assert sizes[2:] == [1, 3, 8, 12]
