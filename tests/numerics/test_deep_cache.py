"""DeepCache against its authors' statement, computed with the stock UNet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from altdiffusion.config import from_dict
from altdiffusion.diffusion import models
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.deep_cache import DeepCache, check_blocks
from altdiffusion.generation.loading import make_sampler
from altdiffusion.generation.settings import GenerateConfig
from tests.numerics.test_sampler import PROMPTS, SEEDS, bundle

__all__ = ["bundle"]
SD21 = models.unet_config_sd21() | {
    "block_out_channels": (32, 64, 64, 64), "attention_head_dim": (1, 2, 2, 2), "cross_attention_dim": 64,
}  # fmt: skip


def stock(unet: Any, sample: torch.Tensor, timestep: int, context: torch.Tensor, kept: torch.Tensor | None) -> Any:
    """Return the stock UNet's output, and what enters the second last layer of its last up block.

    Args:
        kept: what enters that layer instead, so that the deep blocks have no effect.
    """
    entering: list[torch.Tensor] = []

    def replace(_: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden, time = given
        skip = unet.config.block_out_channels[0]  # channels of the skip connection, which follow the feature's
        entering.append(hidden[:, :-skip].clone())
        return (hidden, time) if kept is None else (torch.cat((kept, hidden[:, -skip:]), 1), time)

    handle = unet.up_blocks[-1].resnets[-2].register_forward_pre_hook(replace)
    try:
        return unet(sample, timestep, encoder_hidden_states=context, return_dict=False)[0], entering[0]
    finally:
        handle.remove()


@pytest.mark.parametrize("config", [models.unet_config_demo(), SD21], ids=["demo", "sd21"])
@torch.inference_mode()
def test_it_keeps_and_uses_the_feature_that_its_authors_state(config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    unet = models.build_unet(config)
    samples = torch.randn(5, 2, config["in_channels"], 16, 8)
    context = torch.randn(2, 7, config["cross_attention_dim"])
    call = DeepCache(unet, 3).begin()
    kept = None
    for number, sample in enumerate(samples):
        timestep = 900 - 100 * number
        whole = number % 3 == 0
        expected, entered = stock(unet, sample, timestep, context, None if whole else kept)
        kept = entered if whole else kept
        found = call(sample, torch.tensor(timestep), encoder_hidden_states=context, return_dict=False)[0]
        assert torch.equal(found, expected)
        if not whole:
            assert not torch.equal(found, unet(sample, timestep, context, return_dict=False)[0])


def draw(bundle: models.ModelBundle, **speed: Any) -> np.ndarray[Any, Any]:
    tree = {
        "model": {"folder": "none"}, "prompts": {"file": "none"}, "steps": 6, "guidance_scale": 3.0, "batch_rows": 8,
        "speed": speed,
    }  # fmt: skip
    return make_sampler(bundle, from_dict(GenerateConfig, tree)).draw(PROMPTS[:8], SEEDS[:8], 32, 32)


def test_images_with_an_interval_of_1_have_the_same_bits_and_others_are_close(bundle: models.ModelBundle) -> None:
    whole = draw(bundle)
    np.testing.assert_array_equal(draw(bundle, deep_cache=1), whole)
    cached = draw(bundle, deep_cache=2)
    assert 0 < np.abs(cached.astype(int) - whole).mean() < 16  # grey levels
    np.testing.assert_array_equal(draw(bundle, deep_cache=2), cached)  # nothing is left of the batch before


def test_an_unknown_block_is_refused() -> None:
    with pytest.raises(AltDiffusionError, match="SimpleCrossAttnUpBlock2D"):
        check_blocks(SD21 | {"up_block_types": ["SimpleCrossAttnUpBlock2D"]})
    with pytest.raises(AltDiffusionError, match="class_embed_type timestep"):
        check_blocks(SD21 | {"class_embed_type": "timestep"})
