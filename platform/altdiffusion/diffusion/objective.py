"""The training objective: predict the noise that was added to a latent.

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps
    loss = mean over batch and elements of (eps_hat(x_t, t, text) - eps)^2

(Ho, Jain, Abbeel: "Denoising diffusion probabilistic models", 2020, equations 4 and 14), with the schedule of Stable
Diffusion: 1000 steps whose square roots of beta rise linearly from sqrt(0.00085) to sqrt(0.012).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TIMESTEPS = 1000
BETA_START = 0.00085
BETA_END = 0.012


def scaled_linear_betas(steps: int = TIMESTEPS, beta_start: float = BETA_START, beta_end: float = BETA_END) -> Tensor:
    """beta_t = (sqrt(beta_start) + t / (steps - 1) (sqrt(beta_end) - sqrt(beta_start)))^2: float64 [steps]."""
    return torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Weights of picture and noise at each timestep: two float32 tensors [steps] on one device."""

    signal: Tensor  # sqrt(abar_t)
    noise: Tensor  # sqrt(1 - abar_t)

    @classmethod
    def scaled_linear(cls, device: torch.device | str = "cpu", steps: int = TIMESTEPS) -> Schedule:
        """Stable Diffusion's schedule; products and roots are taken in float64."""
        alphas_cumprod = torch.cumprod(1.0 - scaled_linear_betas(steps), dim=0)
        return cls(
            signal=alphas_cumprod.sqrt().to(device, torch.float32),
            noise=(1.0 - alphas_cumprod).sqrt().to(device, torch.float32),
        )

    @property
    def steps(self) -> int:
        return int(self.signal.shape[0])

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t of latents [B, C, H, W] and noise of the same shape (float32) at timesteps int64 [B]."""
        shape = (-1, *([1] * (latents.dim() - 1)))
        return self.signal[timesteps].view(shape) * latents + self.noise[timesteps].view(shape) * noise


def epsilon_loss(predicted: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of each sample, in float32 whatever the prediction's dtype: [B, ...], [B, ...] -> [B]."""
    return F.mse_loss(predicted.float(), noise.float(), reduction="none").flatten(1).mean(1)
