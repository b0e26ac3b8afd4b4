"""IR-SDE: the mean-reverting diffusion that carries a clean image to its degraded one.

Forward process (Luo et al., ICML 2023, arXiv 2301.11699, eq. 3), with mu the degraded image:

    dx = theta_t (mu - x) dt + sigma_t dw,    sigma_t^2 = 2 lambda^2 theta_t

Everything here is a pure function of `Tables` and tensors. Images are `[B, C, H, W]` floats in
[0, 1]; a time `t` is an int or an int tensor `[B]` in 0..T, and `s` an earlier one. In terms of
u = (x - mu) / lambda the process is variance preserving with signal level alpha_t, which is what
lets one step jump from any t to any s < t.

Tables, images and tensor times share one device, and nothing here waits for it. Coefficients
keep the tables' dtype and lift narrower images to it, so a network's bfloat16 output is used in
float32 arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Time = int | Tensor


def cosine_theta(T: int, dtype: torch.dtype) -> Tensor:
    """theta_k = 1 - f(k + 1) / f(0), f(k) = cos^2((k / n + s) / (1 + s) pi / 2), n = T + 2."""
    n, s = T + 2, 0.008
    k = torch.arange(n + 1, dtype=dtype)
    f = torch.cos((k / n + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - f / f[0])[1:-1]


def linear_theta(T: int, dtype: torch.dtype) -> Tensor:
    """theta_k from 1e-4 to 0.02 in equal steps, scaled from 1000 steps to T + 1."""
    scale = 1000 / (T + 1)
    return torch.linspace(scale * 1e-4, scale * 0.02, T + 1, dtype=dtype)


def constant_theta(T: int, dtype: torch.dtype) -> Tensor:
    """theta_k = 1."""
    return torch.ones(T + 1, dtype=dtype)


SCHEDULES: dict[str, Callable[[int, torch.dtype], Tensor]] = {
    "cosine": cosine_theta,
    "linear": linear_theta,
    "constant": constant_theta,
}


@dataclass(frozen=True)
class Tables:
    """The discretised SDE: tensors `[T + 1]`, indexed by time 0..T.

    Time 0 is the clean image's end; it is never trained on, and `Theta[0]` is 0 by definition.
    """

    lambda_: float
    """Stationary standard deviation, in image units (50 / 255 in the recipe)."""
    dt: float
    """Length of one time step, -ln(eps) / Theta_T, so that alpha_T = eps."""
    theta: Tensor
    """Speed of mean reversion theta_t."""
    Theta: Tensor
    """Theta_t = theta_1 + ... + theta_t."""
    sigma: Tensor
    """Diffusion coefficient sigma_t = lambda sqrt(2 theta_t)."""
    decay: Tensor
    """What is left of x_{t-1} - mu at time t: exp(-theta_t dt)."""
    alpha: Tensor
    """What is left of x_0 - mu at time t: alpha_t = exp(-Theta_t dt)."""
    sigma_bar: Tensor
    """Standard deviation of x_t given x_0: lambda sqrt(1 - alpha_t^2)."""

    @property
    def T(self) -> int:
        """Number of time steps."""
        return len(self.theta) - 1

    def to(self, device: torch.device | str) -> Tables:
        """The same tables on another device; no copy if they are there already."""
        return replace(
            self,
            theta=self.theta.to(device),
            Theta=self.Theta.to(device),
            sigma=self.sigma.to(device),
            decay=self.decay.to(device),
            alpha=self.alpha.to(device),
            sigma_bar=self.sigma_bar.to(device),
        )


def make_tables(
    schedule: str = "cosine",
    T: int = 100,
    lambda_: float = 50 / 255,
    eps: float = 0.005,
    dtype: torch.dtype = torch.float32,
) -> Tables:
    """Build the tables of a schedule, on the CPU.

    They are float32 by default because the reference's are: near t = 0, where 1 - alpha_t^2
    loses digits, released weights then meet the very numbers they were trained with.

    Raises:
        ValueError: the schedule is unknown, or `T`, `lambda_` or `eps` is out of range.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown SDE schedule {schedule!r}; choose one of {sorted(SCHEDULES)}")
    if T < 1 or lambda_ <= 0 or not 0 < eps < 1:
        raise ValueError(f"need T >= 1, lambda > 0, 0 < eps < 1; got {T=}, {lambda_=}, {eps=}")
    theta = SCHEDULES[schedule](T, dtype)
    Theta = torch.cumsum(theta, dim=0) - theta[0]
    dt = float(-1 / Theta[-1] * math.log(eps))
    alpha = _exp(-Theta * dt)
    if not (alpha[1:] < 1).all():
        raise ValueError(f"with {T=} the first step changes nothing in {dtype}; take a smaller T")
    return Tables(
        lambda_=lambda_,
        dt=dt,
        theta=theta,
        Theta=Theta,
        sigma=torch.sqrt(lambda_**2 * 2 * theta),
        decay=_exp(-theta * dt),
        alpha=alpha,
        sigma_bar=torch.sqrt(lambda_**2 * (1 - _exp(-2 * Theta * dt))),
    )


def _exp(x: Tensor) -> Tensor:
    """Correctly rounded, for the last digit, which counts near t = 0, varies between machines."""
    return torch.exp(x.double()).to(x.dtype)


def at(table: Tensor, t: Time) -> Tensor:
    """Entries of a table at times t, `[B, 1, 1, 1]`; `[1, 1, 1, 1]` for an int time."""
    return table[t].reshape(-1, 1, 1, 1)


def elapsed(tables: Tables, t: Time, s: Time) -> Tensor:
    """Reversion from time s to time t, h = (Theta_t - Theta_s) dt, shaped as by `at`."""
    # theta_t stands apart so that one step reads it undamaged: a difference of sums loses digits.
    before = at(tables.Theta, t - 1) - at(tables.Theta, s)
    return (at(tables.theta, t) + before) * tables.dt


def half_log_snr(tables: Tables, t: Time) -> Tensor:
    """ln(lambda alpha_t / sigma_bar_t), half the log of u_t's signal-to-noise ratio.

    Shaped as by `at`. Falls with t, and is infinite at t = 0.
    """
    return torch.log(tables.lambda_ * at(tables.alpha, t) / at(tables.sigma_bar, t))


def marginal_mean(tables: Tables, x_0: Tensor, mu: Tensor, t: Time) -> Tensor:
    """E[x_t | x_0] = mu + (x_0 - mu) alpha_t."""
    return mu + (x_0 - mu) * at(tables.alpha, t)


def diffuse(tables: Tables, x_0: Tensor, mu: Tensor, t: Time, noise: Tensor) -> Tensor:
    """x_t = mu + (x_0 - mu) alpha_t + sigma_bar_t noise."""
    return marginal_mean(tables, x_0, mu, t) + at(tables.sigma_bar, t) * noise


def prior(tables: Tables, mu: Tensor, noise: Tensor) -> Tensor:
    """x_T = mu + lambda noise: the terminal state sampling starts from."""
    return mu + tables.lambda_ * noise


def noise_from_data(tables: Tables, x_t: Tensor, x_0: Tensor, mu: Tensor, t: Time) -> Tensor:
    """noise = (x_t - E[x_t | x_0]) / sigma_bar_t."""
    return (x_t - marginal_mean(tables, x_0, mu, t)) / at(tables.sigma_bar, t)


def data_from_noise(tables: Tables, x_t: Tensor, noise: Tensor, mu: Tensor, t: Time) -> Tensor:
    """x_0 = mu + (x_t - mu - sigma_bar_t noise) / alpha_t."""
    deviation = x_t - mu - at(tables.sigma_bar, t) * noise
    return mu + deviation / at(tables.alpha, t)


def score(tables: Tables, noise: Tensor, t: Time) -> Tensor:
    """grad log p_t(x_t | x_0) = -noise / sigma_bar_t."""
    return -noise / at(tables.sigma_bar, t)


def forward_step(tables: Tables, x: Tensor, mu: Tensor, t: Time, noise: Tensor) -> Tensor:
    """x + theta_t (mu - x) dt + sigma_t sqrt(dt) noise: one Euler-Maruyama step forwards."""
    drift = at(tables.theta, t) * tables.dt * (mu - x)
    return x + drift + at(tables.sigma, t) * math.sqrt(tables.dt) * noise


def reverse_sde_mean(
    tables: Tables, x_t: Tensor, mu: Tensor, score_t: Tensor, t: Time, s: Time
) -> Tensor:
    """x_t - (h (mu - x_t) - 2 lambda^2 h score): mean of a reverse Euler-Maruyama step t -> s."""
    h = elapsed(tables, t, s)
    return x_t - (h * (mu - x_t) - 2 * tables.lambda_**2 * h * score_t)


def reverse_sde_step(
    tables: Tables, x_t: Tensor, mu: Tensor, score_t: Tensor, t: Time, s: Time, noise: Tensor
) -> Tensor:
    """Mean of the reverse step minus lambda sqrt(2 h) noise."""
    dispersion = tables.lambda_ * torch.sqrt(2 * elapsed(tables, t, s))
    # Minus, as the reference draws it: the same seed then gives the same image.
    return reverse_sde_mean(tables, x_t, mu, score_t, t, s) - dispersion * noise


def reverse_ode_step(
    tables: Tables, x_t: Tensor, mu: Tensor, score_t: Tensor, t: Time, s: Time
) -> Tensor:
    """x_t - (h (mu - x_t) - lambda^2 h score): Euler step of the probability-flow ODE."""
    h = elapsed(tables, t, s)
    return x_t - (h * (mu - x_t) - tables.lambda_**2 * h * score_t)


def optimum_step(tables: Tables, x_t: Tensor, x_0: Tensor, mu: Tensor, t: Time, s: Time) -> Tensor:
    """Mean of q(x_s | x_t, x_0), the optimum reverse state (IR-SDE, proposition 3.2).

        A (1 - C^2) / (1 - B^2) (x_t - mu) + C (1 - A^2) / (1 - B^2) (x_0 - mu) + mu

    with A = alpha_t / alpha_s, B = alpha_t, C = alpha_s; A = exp(-theta_t dt) for s = t - 1.
    """
    B, C = at(tables.alpha, t), at(tables.alpha, s)
    A = at(tables.decay, t) * (at(tables.alpha, t - 1) / C)
    from_x_t = A * (1 - C**2) / (1 - B**2) * (x_t - mu)
    from_x_0 = C * (1 - A**2) / (1 - B**2) * (x_0 - mu)
    return from_x_t + from_x_0 + mu


def posterior_std(tables: Tables, t: Time, s: Time) -> Tensor:
    """Standard deviation of q(x_s | x_t, x_0): lambda sqrt(1 - A^2) sigma_bar_s / sigma_bar_t.

    Shaped as by `at`; 0 for s = 0.
    """
    step_std = tables.lambda_ * torch.sqrt(-torch.expm1(-2 * elapsed(tables, t, s)))
    return step_std * at(tables.sigma_bar, s) / at(tables.sigma_bar, t)


def posterior_step(
    tables: Tables, x_t: Tensor, x_0: Tensor, mu: Tensor, t: Time, s: Time, noise: Tensor
) -> Tensor:
    """A draw of q(x_s | x_t, x_0)."""
    mean = optimum_step(tables, x_t, x_0, mu, t, s)
    return mean + posterior_std(tables, t, s) * noise


def matching_loss(
    tables: Tables, x_t: Tensor, x_0: Tensor, mu: Tensor, noise: Tensor, t: Time
) -> Tensor:
    """Mean L1 distance of each image's predicted reverse step from the optimum one, `[B]`.

    The mean over images is the published loss (IR-SDE, eq. 16).

    Args:
        tables: the SDE.
        x_t: noisy states `[B, C, H, W]`.
        x_0: clean images `[B, C, H, W]`.
        mu: degraded images `[B, C, H, W]`.
        noise: the network's noise prediction `[B, C, H, W]`.
        t: times in 1..T.
    """
    predicted = reverse_sde_mean(tables, x_t, mu, score(tables, noise, t), t, t - 1)
    distance = (predicted - optimum_step(tables, x_t, x_0, mu, t, t - 1)).abs()
    return distance.flatten(1).mean(dim=1)
