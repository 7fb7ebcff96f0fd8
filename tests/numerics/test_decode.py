"""Decoding latents: in the VAE's own dtype, and in float32 where half precision overflows."""

from __future__ import annotations

import copy

import pytest
import torch

from altdiffusion.diffusion import models
from altdiffusion.diffusion.autoencoder import decode, decode_in_float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_vae_that_overflows_in_half_precision_decodes_in_float32(dtype: torch.dtype) -> None:
    """Activations of 1e6 before a normalisation are an image in float32; float16 ends at 65,504."""
    torch.manual_seed(0)
    vae = models.build_vae(models.vae_config_demo())
    with torch.inference_mode():
        vae.decoder.conv_in.weight *= 1e6 / vae.decoder.conv_in.weight.abs().max() / 20
        half = copy.deepcopy(vae).to(dtype)
        latents = 10 * torch.randn(2, 16, 8, 8) * vae.config.scaling_factor
        exact = decode(vae, latents)
        assert exact.dtype == torch.float32 and exact.std() > 0.01
        assert bool(torch.isfinite(decode(half, latents)).all()) == (dtype == torch.bfloat16)
        before = {name: tensor.clone() for name, tensor in half.state_dict().items()}
        found = decode_in_float32(half, latents)
    tolerance = {torch.float16: 0.003, torch.bfloat16: 0.03}[dtype]  # of the weights' own rounding
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < tolerance
    after = half.state_dict()
    assert all(tensor.dtype == dtype and torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_decoding_in_float32_is_exactly_that_of_a_float32_vae() -> None:
    torch.manual_seed(0)
    vae = models.build_vae(models.vae_config_demo())
    rounded = copy.deepcopy(vae).to(torch.float16)
    latents = torch.randn(2, 16, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(
            decode_in_float32(rounded, latents), decode(copy.deepcopy(rounded).float(), latents), rtol=0, atol=0
        )
        assert not torch.equal(decode(vae, latents), decode_in_float32(rounded, latents))


def test_the_dtype_comes_back_after_an_error() -> None:
    vae = models.build_vae(models.vae_config_demo()).to(torch.float16)
    with pytest.raises(RuntimeError):
        decode_in_float32(vae, torch.zeros(1, 3, 8, 8))
    assert next(vae.parameters()).dtype == torch.float16
