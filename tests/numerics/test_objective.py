"""The schedule and the loss against closed forms and against diffusers."""

from __future__ import annotations

import math

import pytest
import torch

from altdiffusion.diffusion import noise
from altdiffusion.diffusion.objective import Schedule, scaled_linear_betas, squared_error


def test_betas_are_the_closed_form() -> None:
    betas = scaled_linear_betas().tolist()
    assert len(betas) == 1000
    for t in (0, 1, 499, 998, 999):
        root = math.sqrt(0.00085) + t / 999 * (math.sqrt(0.012) - math.sqrt(0.00085))
        assert math.isclose(betas[t], root * root, rel_tol=1e-12)


def test_weights_are_the_roots_of_the_cumulative_product() -> None:
    schedule = Schedule.scaled_linear()
    product = 1.0
    for t, beta in enumerate(scaled_linear_betas().tolist()):
        product *= 1 - beta
        assert math.isclose(float(schedule.signal[t]), math.sqrt(product), rel_tol=1e-6)
        assert math.isclose(float(schedule.noise[t]), math.sqrt(1 - product), rel_tol=1e-6)


def test_it_is_the_schedule_of_diffusers() -> None:
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    ours = Schedule.scaled_linear()
    torch.testing.assert_close(ours.signal**2, theirs.alphas_cumprod, rtol=2e-5, atol=1e-7)
    latents, eps = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    steps = torch.tensor([0, 1, 500, 999])
    torch.testing.assert_close(
        ours.add_noise(latents, eps, steps), theirs.add_noise(latents, eps, steps), rtol=2e-5, atol=1e-6
    )


def test_loss_of_a_known_prediction() -> None:
    """Answering x_t has the error sqrt(abar) x_0 + (sqrt(1 - abar) - 1) eps: its mean square is known."""
    schedule = Schedule.scaled_linear()
    latents = torch.full((3, 2, 4, 4), 2.0)
    eps = torch.full((3, 2, 4, 4), -1.0)
    steps = torch.tensor([0, 400, 999])
    loss = squared_error(schedule.add_noise(latents, eps, steps), eps)
    product, expected = 1.0, []
    for t, beta in enumerate(scaled_linear_betas().tolist()):
        product *= 1 - beta
        if t in (0, 400, 999):
            expected.append((2 * math.sqrt(product) - math.sqrt(1 - product) + 1) ** 2)
    torch.testing.assert_close(loss, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_expected_loss_of_a_zero_prediction_is_one() -> None:
    eps = noise.keyed_normal(1, torch.arange(512), noise.NOISE, (4, 8, 8))
    loss = squared_error(torch.zeros_like(eps), eps)
    assert loss.shape == (512,)
    assert abs(float(loss.mean()) - 1) < 5 * math.sqrt(2 / eps.numel())


def test_noised_latents_keep_unit_variance() -> None:
    schedule = Schedule.scaled_linear()
    torch.testing.assert_close(schedule.signal**2 + schedule.noise**2, torch.ones(1000), rtol=1e-6, atol=1e-6)


def test_low_precision_predictions_are_compared_in_float32() -> None:
    predicted = torch.full((1, 4), 256.0, dtype=torch.bfloat16)
    loss = squared_error(predicted, torch.tensor([[255.5, 255.5, 255.5, 255.5]]))
    assert loss.dtype == torch.float32
    assert float(loss) == 0.25


def test_velocity_gives_back_image_and_noise() -> None:
    """x_0 = sqrt(abar) x_t - sqrt(1 - abar) v and eps = sqrt(1 - abar) x_t + sqrt(abar) v."""
    for schedule in (Schedule.scaled_linear(), Schedule.scaled_linear(zero_terminal_snr=True)):
        latents, eps = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
        steps = torch.tensor([0, 1, 500, 999])
        noisy, v = schedule.add_noise(latents, eps, steps), schedule.target("v_prediction", latents, eps, steps)
        signal, share = (part[steps].view(-1, 1, 1, 1) for part in (schedule.signal, schedule.noise))
        torch.testing.assert_close(signal * noisy - share * v, latents, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(share * noisy + signal * v, eps, rtol=1e-5, atol=1e-5)
        assert schedule.target("epsilon", latents, eps, steps) is eps


def test_velocity_is_that_of_diffusers() -> None:
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    latents, eps, steps = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([0, 500, 999])
    ours = Schedule.scaled_linear().target("v_prediction", latents, eps, steps)
    torch.testing.assert_close(ours, theirs.get_velocity(latents, eps, steps), rtol=1e-4, atol=1e-5)


def test_zero_terminal_snr_is_that_of_diffusers() -> None:
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True
    )
    ours = Schedule.scaled_linear(zero_terminal_snr=True)
    torch.testing.assert_close(ours.signal**2, theirs.alphas_cumprod, rtol=2e-4, atol=1e-6)
    assert float(ours.signal[-1]) == 0.0 and float(ours.noise[-1]) == 1.0
    torch.testing.assert_close(ours.signal[0], Schedule.scaled_linear().signal[0])


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_are_the_closed_form(gamma: float) -> None:
    schedule = Schedule.scaled_linear()
    steps = torch.arange(1000)
    product = 1.0
    weights = {kind: schedule.min_snr_weights(kind, gamma, steps) for kind in ("epsilon", "v_prediction")}
    for t, beta in enumerate(scaled_linear_betas().tolist()):
        product *= 1 - beta
        snr = product / (1 - product)
        assert math.isclose(float(weights["epsilon"][t]), min(snr, gamma) / snr, rel_tol=1e-3)
        assert math.isclose(float(weights["v_prediction"][t]), min(snr, gamma) / (snr + 1), rel_tol=1e-3)
    ended = Schedule.scaled_linear(zero_terminal_snr=True)
    assert float(ended.min_snr_weights("v_prediction", gamma, torch.tensor([999]))) == 0.0


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("zero", [False, True])
def test_min_snr_weights_are_those_of_diffusers_trainers(gamma: float, zero: bool) -> None:
    """With diffusers' own signal-to-noise ratio and the weights that its training scripts take."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    theirs = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=zero
    )
    steps = torch.arange(999 if zero else 1000)  # at no signal their ratio is 0 and their epsilon weight 0 / 0
    snr = compute_snr(theirs, steps)
    capped = snr.clamp(max=gamma)
    schedule = Schedule.scaled_linear(zero_terminal_snr=zero)
    epsilon, velocity = (schedule.min_snr_weights(kind, gamma, steps) for kind in ("epsilon", "v_prediction"))
    torch.testing.assert_close(epsilon, capped / snr, rtol=2e-3, atol=1e-6)
    torch.testing.assert_close(velocity, capped / (snr + 1), rtol=2e-3, atol=1e-6)


def test_zero_terminal_snr_is_the_published_algorithm() -> None:
    """Against diffusers' transcription of algorithm 1 of arXiv 2305.08891, applied to our betas."""
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    betas = rescale_zero_terminal_snr(scaled_linear_betas())
    product = torch.cumprod(1.0 - betas, dim=0)
    ours = Schedule.scaled_linear(zero_terminal_snr=True)
    torch.testing.assert_close(ours.signal.double(), product.sqrt(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours.noise.double(), (1 - product).sqrt(), rtol=1e-6, atol=1e-7)
    assert float(product[-1]) == 0.0


def test_velocity_of_weighted_losses_is_the_noise_loss() -> None:
    """(v_hat - v)^2 = (eps_hat - eps)^2 / abar for one and the same belief: so Min-SNR's two weights agree but for
    min(snr, gamma) / snr against min(snr, gamma) / (snr + 1): their ratio is 1 / abar (section 3.4 of the paper)."""
    schedule, steps = Schedule.scaled_linear(), torch.arange(1000)
    ratio = schedule.min_snr_weights("epsilon", 5.0, steps) / schedule.min_snr_weights("v_prediction", 5.0, steps)
    torch.testing.assert_close(ratio, 1 / schedule.signal**2, rtol=1e-3, atol=1e-4)
    latents, eps, believed = torch.randn(3, 1000, 4, 1, 1).unbind()
    noisy = schedule.add_noise(latents, eps, steps)
    signal, share = schedule.signal.view(-1, 1, 1, 1), schedule.noise.view(-1, 1, 1, 1)
    as_velocity = (believed - share * noisy) / signal  # eps = share x_t + signal v
    error_v = squared_error(as_velocity, schedule.target("v_prediction", latents, eps, steps))
    torch.testing.assert_close(error_v, squared_error(believed, eps) / schedule.signal**2, rtol=1e-3, atol=1e-3)
