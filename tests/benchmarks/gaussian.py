"""A problem whose answer is known: every pixel of the clean image is normal, x_0 ~ N(mean, std^2).

The exact denoiser E[x_0 | x_t] is then affine in x_t, and so is each step of a sampler in what it
starts from and in its noise. The law of what it makes thus follows in closed form, without drawing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from modules.diffusion.prediction import Prediction
from modules.diffusion.samplers import Model, Problem, Sampler, State
from modules.diffusion.schedule import NoiseSchedule
from modules.diffusion.sde import epsilon_from_sample


class Law(NamedTuple):
    """A normal distribution."""

    mean: float
    var: float

    def distance(self, other: Law) -> float:
        """Wasserstein-2. Of what solutions of an ODE make of one start, their RMS difference."""
        return math.hypot(self.mean - other.mean, math.sqrt(self.var) - math.sqrt(other.var))


@dataclass(frozen=True)
class Gaussian:
    """The problem, in image units."""

    mean: float = 0.7
    std: float = 0.1
    degraded: float = 0.3
    """mu, the same everywhere."""

    def law(self, schedule: NoiseSchedule, t: int) -> Law:
        """The law of x_t."""
        alpha, sigma_bar = schedule.alpha[t].item(), schedule.sigma_bar[t].item()
        mean = self.degraded + (self.mean - self.degraded) * alpha
        return Law(mean, (self.std * alpha) ** 2 + sigma_bar**2)

    def model(self, schedule: NoiseSchedule) -> Model:
        """The exact denoiser."""

        def predict(x: Tensor, mu: Tensor, t: int) -> Prediction:
            mean, var = self.law(schedule, t)
            x_0 = self.mean + self.std**2 * schedule.alpha[t] / var * (x - mean)
            return Prediction(x_0, epsilon_from_sample(schedule, x, x_0, mu, t))

        return predict

    def flow(self, schedule: NoiseSchedule, x: Tensor, t: int, s: int) -> Tensor:
        """The exact solution at time s of the probability-flow ODE through x at time t."""
        (mean_t, var_t), (mean_s, var_s) = self.law(schedule, t), self.law(schedule, s)
        return mean_s + math.sqrt(var_s / var_t) * (x - mean_t)

    def sampled(
        self, sampler: Sampler, schedule: NoiseSchedule, times: Sequence[int], start: Law
    ) -> list[Law]:
        """The laws of a sampler's states at `times` after the first.

        Args:
            sampler: takes the steps.
            schedule: in float64.
            times: falling.
            start: the law of the state at times[0].
        """
        # Of (x_t, x_0'), the state and the prediction of the visit before.
        mean, cov = np.array([start.mean, 0.0]), np.diag([start.var, 0.0])
        laws, last = [], None
        for t, s in itertools.pairwise(times):
            moved, matrix, gain = self._probe(sampler, schedule, t, s, last)
            mean = moved + matrix @ mean
            cov = matrix @ cov @ matrix.T + np.diag([gain**2, 0.0])
            laws.append(Law(float(mean[0]), float(cov[0, 0])))
            last = t
        return laws

    def _probe(
        self, sampler: Sampler, schedule: NoiseSchedule, t: int, s: int, last: int | None
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """(x_s, x_0) as offset + matrix (x_t, x_0') + (gain z, 0), read off four unit inputs."""
        x, x_0_before, z = torch.eye(4, dtype=torch.float64)[:, 1:, None, None, None].unbind(1)
        mu = torch.full_like(x, self.degraded)
        model = self.model(schedule)
        predicted = model(x, mu, t)
        history = [State(t, x, predicted)]
        if last is not None:
            history.insert(0, State(last, x, Prediction(x_0_before, x_0_before)))
        x_s = sampler.step(Problem(schedule, model, mu, lambda _: z), history, s)
        found = torch.stack([x_s, predicted.x_0]).reshape(2, 4).numpy()
        offset = found[:, 0]
        matrix = found[:, 1:3] - offset[:, None]
        return offset, matrix, float(found[0, 3] - offset[0])
