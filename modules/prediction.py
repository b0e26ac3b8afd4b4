"""What the restorer network predicts, and the one place where its output is converted.

A parameterisation gives the network's raw output F its meaning and turns it into a `Prediction`,
the pair (x_0, noise) that every sampler and loss works on. With u = (x - mu) / lambda and
beta_t = sqrt(1 - alpha_t^2), so that u_t = alpha_t u_0 + beta_t noise:

- `noise`: F is the noise itself. The reference's choice, for released weights. At large t the
  clean image is the small difference of two large terms (alpha_T = 0.005), so errors of F are
  amplified, and little is learnt before hundreds of thousands of steps.
- `data`: F is x_0 - mu, the correction of the degraded image. Learns within minutes.
- `velocity`: F is alpha_t noise - beta_t u_0 (Salimans & Ho, ICLR 2022), between the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from modules.sde import Tables, Time, at, data_from_noise, noise_from_data


class Prediction(NamedTuple):
    """The network's belief about a state x_t: both `[B, C, H, W]`, consistent with each other."""

    x_0: Tensor
    noise: Tensor


Parameterisation = Callable[[Tables, Tensor, Tensor, Tensor, Time], Prediction]
"""(tables, F, x_t, mu, t) -> prediction."""


def from_noise(tables: Tables, F: Tensor, x_t: Tensor, mu: Tensor, t: Time) -> Prediction:
    """noise = F."""
    return Prediction(data_from_noise(tables, x_t, F, mu, t), F)


def from_data(tables: Tables, F: Tensor, x_t: Tensor, mu: Tensor, t: Time) -> Prediction:
    """x_0 = mu + F."""
    x_0 = mu + F
    return Prediction(x_0, noise_from_data(tables, x_t, x_0, mu, t))


def from_velocity(tables: Tables, F: Tensor, x_t: Tensor, mu: Tensor, t: Time) -> Prediction:
    """u_0 = alpha_t u_t - beta_t F and noise = beta_t u_t + alpha_t F."""
    u_t = (x_t - mu) / tables.lambda_
    alpha, beta = at(tables.alpha, t), at(tables.sigma_bar, t) / tables.lambda_
    return Prediction(mu + tables.lambda_ * (alpha * u_t - beta * F), beta * u_t + alpha * F)


PARAMETERISATIONS: dict[str, Parameterisation] = {
    "noise": from_noise,
    "data": from_data,
    "velocity": from_velocity,
}


def parameterisation(name: str) -> Parameterisation:
    """Look a parameterisation up by its configuration name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in PARAMETERISATIONS:
        known = ", ".join(PARAMETERISATIONS)
        raise ValueError(f"unknown prediction target {name!r}; choose one of: {known}")
    return PARAMETERISATIONS[name]
