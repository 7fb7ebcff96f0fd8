"""The training objective: predict the noise that was added to a latent.

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps
    loss = mean over batch and elements of (eps_hat(x_t, t, text) - eps)^2

(Ho, Jain, Abbeel: "Denoising diffusion probabilistic models", 2020, equations 4 and 14), with the schedule of Stable
Diffusion: 1000 steps whose square roots of beta rise linearly from sqrt(0.00085) to sqrt(0.012).

Options, all off in the published recipe:

    v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0         instead of eps (Salimans, Ho 2022, arXiv 2202.00512, appendix D)
    weight min(snr, gamma) / snr, or / (snr + 1) for v  (Hang et al. 2023, arXiv 2303.09556), snr = abar / (1 - abar)
    schedule shifted and scaled to no signal at the end (Lin et al. 2023, arXiv 2305.08891, algorithm 1)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction"]

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
    def scaled_linear(
        cls, device: torch.device | str = "cpu", steps: int = TIMESTEPS, *, zero_terminal_snr: bool = False
    ) -> Schedule:
        """Stable Diffusion's schedule; products and roots are taken in float64.

        Args:
            zero_terminal_snr: moves sqrt(abar) so that the last step holds no signal and the first stays as it is.
        """
        signal = torch.cumprod(1.0 - scaled_linear_betas(steps), dim=0).sqrt()
        if zero_terminal_snr:
            signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
        return cls(
            signal=signal.to(device, torch.float32),
            noise=(1.0 - signal**2).sqrt().to(device, torch.float32),
        )

    @property
    def steps(self) -> int:
        return int(self.signal.shape[0])

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t of latents [B, C, H, W] and noise of the same shape (float32) at timesteps int64 [B]."""
        signal, share = self._at(timesteps, latents.dim())
        return signal * latents + share * noise

    def target(self, prediction: Prediction, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network should answer, in the shape of the noise."""
        if prediction == "epsilon":
            return noise
        signal, share = self._at(timesteps, latents.dim())
        return signal * noise - share * latents

    def min_snr_weights(self, prediction: Prediction, gamma: float, timesteps: Tensor) -> Tensor:
        """Weight of each sample's loss, float32 [B]. With epsilon, a step without signal weighs 1: the limit."""
        squared = self.signal[timesteps] ** 2
        snr = squared / (1.0 - squared)
        if prediction == "v_prediction":
            return snr.clamp(max=gamma) / (snr + 1.0)
        return (gamma / snr).clamp(max=1.0)

    def _at(self, timesteps: Tensor, dims: int) -> tuple[Tensor, Tensor]:
        shape = (-1, *([1] * (dims - 1)))
        return self.signal[timesteps].view(shape), self.noise[timesteps].view(shape)


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample, in float32 whatever the prediction's dtype: [B, ...], [B, ...] -> [B]."""
    return F.mse_loss(predicted.float(), target.float(), reduction="none").flatten(1).mean(1)
