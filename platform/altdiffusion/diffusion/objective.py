"""The training objective: predict the noise that was added to a latent.

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps
    loss = mean over batch and elements of (eps_hat(x_t, t, text) - eps)^2

(Ho, Jain, Abbeel: "Denoising diffusion probabilistic models", 2020, equations 4 and 14), with the schedule of the base
model. Stable Diffusion's: 1000 steps whose square roots of beta rise linearly from sqrt(0.00085) to sqrt(0.012).

Some bases differ in the following, and some of it can be switched on; the published recipe uses none of it:

    v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0         instead of eps (Salimans, Ho 2022, arXiv 2202.00512, appendix D)
    weight min(snr, gamma) / snr, or / (snr + 1) for v  (Hang et al. 2023, arXiv 2303.09556), snr = abar / (1 - abar)
    schedule shifted and scaled to no signal at the end (Lin et al. 2023, arXiv 2305.08891, algorithm 1)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from altdiffusion.errors import AltDiffusionError

if TYPE_CHECKING:  # settings name these types without a second's wait for torch
    import torch
    from torch import Tensor

Prediction = Literal["epsilon", "v_prediction"]

TIMESTEPS = 1000
BETA_START = 0.00085
BETA_END = 0.012


def scaled_linear_betas(steps: int = TIMESTEPS, beta_start: float = BETA_START, beta_end: float = BETA_END) -> Tensor:
    """Return beta_t = (sqrt(beta_start) + t / (steps - 1) (sqrt(beta_end) - sqrt(beta_start)))^2, float64 [steps]."""
    import torch

    return torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2


@dataclass(frozen=True, kw_only=True)
class Noising:
    """What a UNet predicts, and how much noise each timestep contains, from the config of its scheduler.

    The names are those of diffusers' scheduler configs, except `zero_terminal_snr` (`rescale_betas_zero_snr`).
    """

    prediction: Prediction = "epsilon"
    beta_schedule: str = "scaled_linear"
    beta_start: float = BETA_START
    beta_end: float = BETA_END
    num_train_timesteps: int = TIMESTEPS
    trained_betas: tuple[float, ...] | None = None
    zero_terminal_snr: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any], what: str) -> Noising:
        """Return the settings of a scheduler's config.

        Args:
            config: the config of a diffusers scheduler, with its class's defaults filled in.
            what: names the scheduler in errors.

        Raises:
            AltDiffusionError: the scheduler has no betas, or a UNet cannot be trained here with its prediction,
                schedule or values.
        """
        lacking = [name for name in ("beta_start", "beta_end", "num_train_timesteps") if name not in config]
        if lacking:
            raise AltDiffusionError(
                what,
                f"has no noise schedule of betas (it lacks {', '.join(lacking)})",
                "use a base of Stable Diffusion's kind; rectified-flow and EDM models are not supported",
            )
        prediction = str(config.get("prediction_type", "epsilon"))
        if prediction not in ("epsilon", "v_prediction"):
            raise AltDiffusionError(
                f"{what}, prediction_type",
                f"is {prediction!r}, which cannot be trained here",
                "use a base that predicts epsilon or v_prediction",
            )
        rescaled, trained = config.get("rescale_betas_zero_snr", False), config.get("trained_betas")
        try:
            if not isinstance(rescaled, bool):
                raise ValueError(f"rescale_betas_zero_snr: {rescaled!r}")
            noising = cls(
                prediction="epsilon" if prediction == "epsilon" else "v_prediction",
                beta_schedule=str(config.get("beta_schedule", "linear")),
                beta_start=float(config["beta_start"]),
                beta_end=float(config["beta_end"]),
                num_train_timesteps=int(config["num_train_timesteps"]),
                trained_betas=None if trained is None else tuple(float(beta) for beta in trained),
                zero_terminal_snr=rescaled,
            )
        except (TypeError, ValueError) as error:
            raise AltDiffusionError(
                what, f"holds a value of another type than diffusers writes ({error})", "copy it as published"
            ) from error
        noising.check(what)
        return noising

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Noising:
        """Return the `Noising` of which `dataclasses.asdict` made this tree."""
        trained = tree["trained_betas"]
        return cls(**{**tree, "trained_betas": None if trained is None else tuple(trained)})

    @property
    def schedule(self) -> str:
        """The schedule as readable text; equal texts mean equal schedules."""
        if self.trained_betas == ():
            return "trained_betas without a value"
        if self.trained_betas is not None:
            return f"trained_betas {self.trained_betas[0]:g} .. {self.trained_betas[-1]:g}, {self.timesteps} steps"
        ends = "" if self.beta_schedule == "squaredcos_cap_v2" else f" {self.beta_start:g} to {self.beta_end:g},"
        return f"{self.beta_schedule}{ends} {self.timesteps} steps"

    @property
    def timesteps(self) -> int:
        """Number of timesteps for which noise is drawn."""
        return self.num_train_timesteps if self.trained_betas is None else len(self.trained_betas)

    def check(self, what: str) -> None:
        """Check that the schedule is valid and its predictions are finite.

        Raises:
            AltDiffusionError: the schedule is invalid; the error states why.
        """
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise AltDiffusionError(
                what,
                "predicts epsilon under a schedule without signal in its last step (rescale_betas_zero_snr): the "
                "image that such a step predicts is not finite",
                "use v_prediction with that schedule, or the schedule as it is with epsilon",
            )
        import torch

        ends = () if self.trained_betas is not None else (self.beta_start, self.beta_end)  # roots are taken of them
        betas = self.betas(what) if self.timesteps > 1 and all(0 < end < 1 for end in ends) else torch.empty(0)
        if len(betas) < 2 or not bool(((betas > 0) & (betas < 1)).all()):
            raise AltDiffusionError(
                what, f"has betas outside of 0 to 1 ({self.schedule})", "use a scheduler_config.json as published"
            )

    def betas(self, what: str = "noise schedule") -> Tensor:
        """Return the variances that each step adds: float64 [timesteps].

        Raises:
            AltDiffusionError: the schedule is unknown.
        """
        import torch

        if self.trained_betas is not None:
            return torch.tensor(self.trained_betas, dtype=torch.float64)
        steps = self.num_train_timesteps
        if self.beta_schedule == "scaled_linear":
            return scaled_linear_betas(steps, self.beta_start, self.beta_end)
        if self.beta_schedule == "linear":
            return torch.linspace(self.beta_start, self.beta_end, steps, dtype=torch.float64)
        if self.beta_schedule == "squaredcos_cap_v2":
            return squared_cosine_betas(steps)
        raise AltDiffusionError(
            f"{what}, beta_schedule",
            f"is {repr(self.beta_schedule)[:80]}, which is unknown here",
            "use a base of scaled_linear, linear or squaredcos_cap_v2, or one that lists its trained_betas",
        )


SD = Noising()
"""Stable Diffusion's own settings."""


def squared_cosine_betas(steps: int = TIMESTEPS) -> Tensor:
    """Return the squared-cosine schedule, float64 [steps] (Nichol, Dhariwal 2021, arXiv 2102.09672, equation 17).

    beta_t = min(1 - abar((t + 1) / steps) / abar(t / steps), 0.999), abar(u) = cos^2((u + 0.008) / 1.008 pi / 2)
    """
    import torch

    signal = torch.cos((torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - signal[1:] / signal[:-1]).clamp(max=0.999)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Weights of image and noise at each timestep: two float32 tensors [steps] on one device."""

    signal: Tensor  # sqrt(abar_t)
    noise: Tensor  # sqrt(1 - abar_t)

    @classmethod
    def scaled_linear(
        cls, device: torch.device | str = "cpu", steps: int = TIMESTEPS, *, zero_terminal_snr: bool = False
    ) -> Schedule:
        """Return Stable Diffusion's schedule; products and roots are computed in float64.

        Args:
            zero_terminal_snr: shift and scale sqrt(abar) so that the last step has no signal and the first is kept.
        """
        return cls.of_betas(scaled_linear_betas(steps), device, zero_terminal_snr=zero_terminal_snr)

    @classmethod
    def of(cls, noising: Noising, device: torch.device | str = "cpu") -> Schedule:
        """Return the weights of a base's own schedule."""
        return cls.of_betas(noising.betas(), device, zero_terminal_snr=noising.zero_terminal_snr)

    @classmethod
    def of_betas(
        cls, betas: Tensor, device: torch.device | str = "cpu", *, zero_terminal_snr: bool = False
    ) -> Schedule:
        """Return the weights of any schedule of betas, float64 [steps]."""
        import torch

        signal = torch.cumprod(1.0 - betas, dim=0).sqrt()
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
        """Return x_t from latents [B, C, H, W] and noise of the same shape (float32) at timesteps int64 [B]."""
        signal, share = self._at(timesteps, latents.dim())
        return signal * latents + share * noise

    def target(self, prediction: Prediction, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the network should predict, in the shape of the noise."""
        if prediction == "epsilon":
            return noise
        signal, share = self._at(timesteps, latents.dim())
        return signal * noise - share * latents

    def min_snr_weights(self, prediction: Prediction, gamma: float, timesteps: Tensor) -> Tensor:
        """Return the weight of each sample's loss, float32 [B].

        With epsilon, the weight of a step without signal is 1, which is the limit.
        """
        squared = self.signal[timesteps] ** 2
        snr = squared / (1.0 - squared)
        if prediction == "v_prediction":
            return snr.clamp(max=gamma) / (snr + 1.0)
        return (gamma / snr).clamp(max=1.0)

    def _at(self, timesteps: Tensor, dims: int) -> tuple[Tensor, Tensor]:
        shape = (-1, *([1] * (dims - 1)))
        return self.signal[timesteps].view(shape), self.noise[timesteps].view(shape)


def squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of each sample, float32 for every input dtype: [B, ...], [B, ...] -> [B]."""
    from torch.nn import functional

    return functional.mse_loss(predicted.float(), target.float(), reduction="none").flatten(1).mean(1)
