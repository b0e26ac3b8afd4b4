"""IR-SDE: the mean-reverting diffusion that carries a clean image to its degraded one.

Forward process (Luo et al., ICML 2023, arXiv 2301.11699, eq. 3), with mu the degraded image:

    dx = theta_t (mu - x) dt + sigma_t dw,    sigma_t^2 = 2 lambda^2 theta_t

Everything here is a pure function of a `NoiseSchedule` and tensors. Images are `[B, C, H, W]`
floats in [0, 1]; a time `t` is an int or an int tensor `[B]` in 0..T, and `s` an earlier one. In
terms of u = (x - mu) / lambda the process is variance preserving with signal level alpha_t, which
is what lets one step jump from any t to any s < t.

NoiseSchedule, images and tensor times share one device, and nothing here waits for it. Coefficients
keep the schedule's dtype and promote narrower images to it, so a network's bfloat16 output is used
in float32 arithmetic.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from modules.diffusion.schedule import NoiseSchedule, Time, at, elapsed


def marginal_mean(schedule: NoiseSchedule, x_0: Tensor, mu: Tensor, t: Time) -> Tensor:
    """E[x_t | x_0] = mu + (x_0 - mu) alpha_t."""
    return mu + (x_0 - mu) * at(schedule.alpha, t)


def diffuse(schedule: NoiseSchedule, x_0: Tensor, mu: Tensor, t: Time, noise: Tensor) -> Tensor:
    """x_t = mu + (x_0 - mu) alpha_t + sigma_bar_t noise."""
    return marginal_mean(schedule, x_0, mu, t) + at(schedule.sigma_bar, t) * noise


def prior(schedule: NoiseSchedule, mu: Tensor, noise: Tensor) -> Tensor:
    """x_T = mu + lambda noise: the terminal state sampling starts from."""
    return mu + schedule.lambda_ * noise


def epsilon_from_sample(
    schedule: NoiseSchedule, x_t: Tensor, x_0: Tensor, mu: Tensor, t: Time
) -> Tensor:
    """noise = (x_t - E[x_t | x_0]) / sigma_bar_t."""
    return (x_t - marginal_mean(schedule, x_0, mu, t)) / at(schedule.sigma_bar, t)


def sample_from_epsilon(
    schedule: NoiseSchedule, x_t: Tensor, noise: Tensor, mu: Tensor, t: Time
) -> Tensor:
    """x_0 = mu + (x_t - mu - sigma_bar_t noise) / alpha_t."""
    deviation = x_t - mu - at(schedule.sigma_bar, t) * noise
    return mu + deviation / at(schedule.alpha, t)


def score(schedule: NoiseSchedule, noise: Tensor, t: Time) -> Tensor:
    """grad log p_t(x_t | x_0) = -noise / sigma_bar_t."""
    return -noise / at(schedule.sigma_bar, t)


def forward_step(schedule: NoiseSchedule, x: Tensor, mu: Tensor, t: Time, noise: Tensor) -> Tensor:
    """x + theta_t (mu - x) dt + sigma_t sqrt(dt) noise: one Euler-Maruyama step forwards."""
    drift = at(schedule.theta, t) * schedule.dt * (mu - x)
    return x + drift + at(schedule.sigma, t) * math.sqrt(schedule.dt) * noise


def reverse_sde_mean(
    schedule: NoiseSchedule, x_t: Tensor, mu: Tensor, score_t: Tensor, t: Time, s: Time
) -> Tensor:
    """x_t - (h (mu - x_t) - 2 lambda^2 h score): mean of a reverse Euler-Maruyama step t -> s."""
    h = elapsed(schedule, t, s)
    return x_t - (h * (mu - x_t) - 2 * schedule.lambda_**2 * h * score_t)


def reverse_sde_step(
    schedule: NoiseSchedule,
    x_t: Tensor,
    mu: Tensor,
    score_t: Tensor,
    t: Time,
    s: Time,
    noise: Tensor,
) -> Tensor:
    """Mean of the reverse step minus lambda sqrt(2 h) noise."""
    dispersion = schedule.lambda_ * torch.sqrt(2 * elapsed(schedule, t, s))
    # Minus, as the reference draws it: the same seed then gives the same image.
    return reverse_sde_mean(schedule, x_t, mu, score_t, t, s) - dispersion * noise


def reverse_ode_step(
    schedule: NoiseSchedule, x_t: Tensor, mu: Tensor, score_t: Tensor, t: Time, s: Time
) -> Tensor:
    """x_t - (h (mu - x_t) - lambda^2 h score): Euler step of the probability-flow ODE."""
    h = elapsed(schedule, t, s)
    return x_t - (h * (mu - x_t) - schedule.lambda_**2 * h * score_t)


def posterior_mean(
    schedule: NoiseSchedule, x_t: Tensor, x_0: Tensor, mu: Tensor, t: Time, s: Time
) -> Tensor:
    """Mean of q(x_s | x_t, x_0), the optimum reverse state (IR-SDE, proposition 3.2).

        A (1 - C^2) / (1 - B^2) (x_t - mu) + C (1 - A^2) / (1 - B^2) (x_0 - mu) + mu

    with A = alpha_t / alpha_s, B = alpha_t, C = alpha_s; A = exp(-theta_t dt) for s = t - 1.
    """
    B, C = at(schedule.alpha, t), at(schedule.alpha, s)
    A = at(schedule.decay, t) * (at(schedule.alpha, t - 1) / C)
    from_x_t = A * (1 - C**2) / (1 - B**2) * (x_t - mu)
    from_x_0 = C * (1 - A**2) / (1 - B**2) * (x_0 - mu)
    return from_x_t + from_x_0 + mu


def posterior_std(schedule: NoiseSchedule, t: Time, s: Time) -> Tensor:
    """Standard deviation of q(x_s | x_t, x_0): lambda sqrt(1 - A^2) sigma_bar_s / sigma_bar_t.

    Shaped as by `at`; 0 for s = 0.
    """
    step_std = schedule.lambda_ * torch.sqrt(-torch.expm1(-2 * elapsed(schedule, t, s)))
    return step_std * at(schedule.sigma_bar, s) / at(schedule.sigma_bar, t)


def posterior_step(
    schedule: NoiseSchedule, x_t: Tensor, x_0: Tensor, mu: Tensor, t: Time, s: Time, noise: Tensor
) -> Tensor:
    """A draw of q(x_s | x_t, x_0)."""
    mean = posterior_mean(schedule, x_t, x_0, mu, t, s)
    return mean + posterior_std(schedule, t, s) * noise


def matching_loss(
    schedule: NoiseSchedule, x_t: Tensor, x_0: Tensor, mu: Tensor, noise: Tensor, t: Time
) -> Tensor:
    """Mean L1 distance of each image's predicted reverse step from the optimum one, `[B]`.

    The mean over images is the published loss (IR-SDE, eq. 16).

    Args:
        schedule: the SDE.
        x_t: noisy states `[B, C, H, W]`.
        x_0: clean images `[B, C, H, W]`.
        mu: degraded images `[B, C, H, W]`.
        noise: the network's noise prediction `[B, C, H, W]`.
        t: times in 1..T.
    """
    predicted = reverse_sde_mean(schedule, x_t, mu, score(schedule, noise, t), t, t - 1)
    distance = (predicted - posterior_mean(schedule, x_t, x_0, mu, t, t - 1)).abs()
    return distance.flatten(1).mean(dim=1)
