"""What the restorer network predicts, and the one place where its output is converted.

A prediction type gives the network's raw output F its meaning and turns it into a `Prediction`,
the pair (x_0, noise) that every sampler and loss works on. With u = (x - mu) / lambda and
beta_t = sqrt(1 - alpha_t^2), so that u_t = alpha_t u_0 + beta_t noise:

- `epsilon`: F is the noise itself. The reference's choice, for released weights. At large t the
  clean image is the small difference of two large terms (alpha_T = 0.005), so errors of F are
  amplified, and little is learnt before hundreds of thousands of steps.
- `sample`: F is x_0 - mu, the correction of the degraded image. Learns within minutes.
- `v_prediction`: F is alpha_t noise - beta_t u_0 (Salimans & Ho, ICLR 2022), between the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from modules.diffusion.schedule import NoiseSchedule, Time, at
from modules.diffusion.sde import epsilon_from_sample, sample_from_epsilon
from modules.registry import Registry


class Prediction(NamedTuple):
    """The network's estimates for a state x_t: both `[B, C, H, W]`, consistent with each other."""

    x_0: Tensor
    epsilon: Tensor


PredictionType = Callable[[NoiseSchedule, Tensor, Tensor, Tensor, Time], Prediction]
"""(schedule, F, x_t, mu, t) -> prediction."""
PREDICTION_TYPES: Registry[PredictionType] = Registry("prediction type")


@PREDICTION_TYPES.register("epsilon")
def from_epsilon(
    schedule: NoiseSchedule, F: Tensor, x_t: Tensor, mu: Tensor, t: Time
) -> Prediction:
    """noise = F."""
    return Prediction(sample_from_epsilon(schedule, x_t, F, mu, t), F)


@PREDICTION_TYPES.register("sample")
def from_sample(schedule: NoiseSchedule, F: Tensor, x_t: Tensor, mu: Tensor, t: Time) -> Prediction:
    """x_0 = mu + F."""
    x_0 = mu + F
    return Prediction(x_0, epsilon_from_sample(schedule, x_t, x_0, mu, t))


@PREDICTION_TYPES.register("v_prediction")
def from_v_prediction(
    schedule: NoiseSchedule, F: Tensor, x_t: Tensor, mu: Tensor, t: Time
) -> Prediction:
    """u_0 = alpha_t u_t - beta_t F and noise = beta_t u_t + alpha_t F."""
    u_t = (x_t - mu) / schedule.lambda_
    alpha, beta = at(schedule.alpha, t), at(schedule.sigma_bar, t) / schedule.lambda_
    return Prediction(mu + schedule.lambda_ * (alpha * u_t - beta * F), beta * u_t + alpha * F)
