"""Operations of a step: the published network's against measured figures, small ones against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from altdiffusion.diffusion import models
from altdiffusion.training.config import ComputeConfig
from altdiffusion.training.model.flops import step_flops
from altdiffusion.training.reporting.peak import PUBLISHED, find_peak


class Tuple(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, value: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.inner(value),)


def test_a_product_counts_two_for_each_weight_and_pass() -> None:
    network = Tuple(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 7)))
    sample = torch.empty(2, 3, device="meta")
    forward = 2 * 2 * (3 * 5 + 5 * 7)
    # Backward: both weights' gradients, and the second layer's input's; the first one's is not needed.
    assert step_flops(network, sample) == forward + 2 * 2 * (3 * 5 + 5 * 7) + 2 * 2 * 5 * 7
    network.inner[0].requires_grad_(False)
    assert step_flops(network, sample) == forward + 2 * 2 * 5 * 7
    network.requires_grad_(False)
    assert step_flops(network, sample) == forward


@pytest.mark.parametrize(
    ("which", "side", "expected"), [("all", 32, 539), ("kv", 32, 363), ("all", 64, 2409), ("kv", 64, 1671)]
)
def test_the_published_network(which: models.Trains, side: int, expected: float) -> None:
    """GFLOP of one image as measured on Stable Diffusion 2.1's UNet: stage 1 at 256 pixels, the others at 512."""
    unet = models.build_unet(models.unet_config_sd21(), "meta").train()
    models.trainable_parameters(unet, which)
    unet.enable_gradient_checkpointing()  # costs time without being progress
    counted = step_flops(
        unet,
        torch.empty(1, 4, side, side, device="meta"),
        torch.zeros(1, dtype=torch.int64, device="meta"),
        encoder_hidden_states=torch.empty(1, 77, 1024, device="meta"),
        return_dict=False,
    )
    assert counted / 1e9 == pytest.approx(expected, rel=0.02)
    assert unet.is_gradient_checkpointing


def test_a_peak_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert find_peak(cpu, "fp32", 1.5).tflops == 1.5
    measured = find_peak(cpu, "fp32")
    assert 1e-3 < measured.tflops < 100 and "measured" in measured.name
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    assert find_peak(gpu, "bf16").tflops == PUBLISHED["A100", "bf16"] == 312
    assert "A100" in find_peak(gpu, "bf16").name
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert find_peak(gpu, "bf16").tflops == 989


def test_an_invalid_peak_is_refused() -> None:
    with pytest.raises(ValueError, match="peak_tflops"):
        ComputeConfig(peak_tflops=0)
