"""The discretised noise schedule of the IR-SDE, which every formula of `sde` reads.

dx = theta_t (mu - x) dt + sigma_t dw,    sigma_t^2 = 2 lambda^2 theta_t
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from modules.registry import Registry

Time = int | Tensor
NOISE_SCHEDULES: Registry[Callable[[int, torch.dtype], Tensor]] = Registry("noise schedule")
"""(T, dtype) -> theta_k for k = 0..T."""


@NOISE_SCHEDULES.register("cosine")
def cosine_theta(T: int, dtype: torch.dtype) -> Tensor:
    """theta_k = 1 - f(k + 1) / f(0), f(k) = cos^2((k / n + s) / (1 + s) pi / 2), n = T + 2."""
    n, s = T + 2, 0.008
    k = torch.arange(n + 1, dtype=dtype)
    f = torch.cos((k / n + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - f / f[0])[1:-1]


@NOISE_SCHEDULES.register("linear")
def linear_theta(T: int, dtype: torch.dtype) -> Tensor:
    """theta_k from 1e-4 to 0.02 in equal steps, scaled from 1000 steps to T + 1."""
    scale = 1000 / (T + 1)
    return torch.linspace(scale * 1e-4, scale * 0.02, T + 1, dtype=dtype)


@NOISE_SCHEDULES.register("constant")
def constant_theta(T: int, dtype: torch.dtype) -> Tensor:
    """theta_k = 1."""
    return torch.ones(T + 1, dtype=dtype)


@dataclass(frozen=True)
class NoiseSchedule:
    """The discretised SDE: tensors `[T + 1]`, indexed by timestep 0..T.

    Timestep 0 is the clean image; it is never trained on, and `Theta[0]` is 0 by definition.
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

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """The same schedule on another device; no copy where it is there already."""
        return replace(
            self,
            theta=self.theta.to(device),
            Theta=self.Theta.to(device),
            sigma=self.sigma.to(device),
            decay=self.decay.to(device),
            alpha=self.alpha.to(device),
            sigma_bar=self.sigma_bar.to(device),
        )


def make_noise_schedule(
    noise_schedule: str = "cosine",
    num_timesteps: int = 100,
    lambda_: float = 50 / 255,
    eps: float = 0.005,
    dtype: torch.dtype = torch.float32,
) -> NoiseSchedule:
    """Build the noise schedule of a name, on the CPU.

    It is float32 by default because the reference's is: near t = 0, where 1 - alpha_t^2
    loses digits, released weights then meet the very numbers they were trained with.

    Raises:
        ValueError: the schedule is unknown, or `num_timesteps`, `lambda_` or `eps` is out of range.
    """
    T, make_theta = num_timesteps, NOISE_SCHEDULES.find(noise_schedule)
    if T < 1 or lambda_ <= 0 or not 0 < eps < 1:
        raise ValueError(
            "need num_timesteps >= 1, lambda_ > 0 and 0 < eps < 1; got "
            f"{num_timesteps=}, {lambda_=}, {eps=}"
        )
    theta = make_theta(T, dtype)
    Theta = torch.cumsum(theta, dim=0) - theta[0]
    dt = float(-1 / Theta[-1] * math.log(eps))
    alpha = _exp(-Theta * dt)
    if not (alpha[1:] < 1).all():
        raise ValueError(f"with {T=} the first step changes nothing in {dtype}; take a smaller T")
    return NoiseSchedule(
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


def elapsed(schedule: NoiseSchedule, t: Time, s: Time) -> Tensor:
    """Reversion from time s to time t, h = (Theta_t - Theta_s) dt, shaped as by `at`."""
    # theta_t stands apart so that one step reads it undamaged: a difference of sums loses digits.
    before = at(schedule.Theta, t - 1) - at(schedule.Theta, s)
    return (at(schedule.theta, t) + before) * schedule.dt


def half_log_snr(schedule: NoiseSchedule, t: Time) -> Tensor:
    """ln(lambda alpha_t / sigma_bar_t), half the log of u_t's signal-to-noise ratio.

    Shaped as by `at`. Falls with t, and is infinite at t = 0.
    """
    return torch.log(schedule.lambda_ * at(schedule.alpha, t) / at(schedule.sigma_bar, t))
