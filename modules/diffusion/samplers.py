"""Reverse-time sampling: one loop, and steps that each carry a state from time t to time s < t.

A sampler is a `Step`, a pure function; the loop, the model, the times and the noise come from
outside. The model is a callable (x_t, mu, t) -> Prediction, so every step serves every
prediction_type.

u = (x - mu) / lambda is a variance-preserving diffusion with signal level alpha_t, so the
literature's solvers for those hold as they stand. `ddim`, `dpmpp_2m` and `dpmpp_2m_sde` are one
update, see `_update`, with and without noise, at first and at second order.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from modules.diffusion import sde
from modules.diffusion.prediction import Prediction
from modules.diffusion.schedule import NoiseSchedule, at, half_log_snr

Model = Callable[[Tensor, Tensor, int], Prediction]
"""(x_t `[B, C, H, W]`, mu, t) -> prediction."""
Noise = Callable[[Tensor], Tensor]
"""Standard normal noise of the shape, dtype and device of its argument."""


class Visit(NamedTuple):
    """A time at which the network was asked: the state there, and its answer."""

    t: int
    x_t: Tensor
    predicted: Prediction


Step = Callable[[NoiseSchedule, Tensor, Visit, Visit | None, int, Noise], Tensor]
"""(schedule, mu, now, before, s, noise) -> x_s; `before` is the last visit, None at the start."""


def sde_step(
    schedule: NoiseSchedule, mu: Tensor, now: Visit, before: Visit | None, s: int, noise: Noise
) -> Tensor:
    """Euler-Maruyama on the reverse SDE."""
    score = sde.score(schedule, now.predicted.epsilon, now.t)
    return sde.reverse_sde_step(schedule, now.x_t, mu, score, now.t, s, noise(now.x_t))


def ode_step(
    schedule: NoiseSchedule, mu: Tensor, now: Visit, before: Visit | None, s: int, noise: Noise
) -> Tensor:
    """Euler on the probability-flow ODE; draws no noise."""
    score = sde.score(schedule, now.predicted.epsilon, now.t)
    return sde.reverse_ode_step(schedule, now.x_t, mu, score, now.t, s)


def posterior_step(
    schedule: NoiseSchedule, mu: Tensor, now: Visit, before: Visit | None, s: int, noise: Noise
) -> Tensor:
    """A draw of q(x_s | x_t, x_0) in closed form; exact for any s < t given the right x_0."""
    x_0 = now.predicted.x_0
    if s == 0:  # where its standard deviation is 0
        return sde.posterior_mean(schedule, now.x_t, x_0, mu, now.t, s)
    return sde.posterior_step(schedule, now.x_t, x_0, mu, now.t, s, noise(now.x_t))


def ddim(eta: float) -> Step:
    """DDIM (Song et al., ICLR 2021, arXiv 2010.02502, eqs. 12 and 16).

    Args:
        eta: share of the posterior's noise that is drawn, in 0..1: at 0 the step solves the
            probability-flow ODE and draws none, at 1 it is the posterior step.

    Raises:
        ValueError: `eta` is out of range.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in 0..1, got {eta}")

    def step(
        schedule: NoiseSchedule, mu: Tensor, now: Visit, before: Visit | None, s: int, noise: Noise
    ) -> Tensor:
        return _update(schedule, mu, now, now.predicted.x_0, s, eta, noise)

    return step


def dpmpp_2m_step(
    schedule: NoiseSchedule, mu: Tensor, now: Visit, before: Visit | None, s: int, noise: Noise
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al., arXiv 2211.01095, algorithm 2); draws no noise."""
    return _update(schedule, mu, now, _midway(schedule, now, before, s), s, 0, noise)


def dpmpp_2m_sde_step(
    schedule: NoiseSchedule, mu: Tensor, now: Visit, before: Visit | None, s: int, noise: Noise
) -> Tensor:
    """SDE-DPM-Solver++(2M) (the same, section 6): as dpmpp_2m, on the reverse SDE."""
    return _update(schedule, mu, now, _midway(schedule, now, before, s), s, 1, noise)


def _update(
    schedule: NoiseSchedule, mu: Tensor, now: Visit, x_0: Tensor, s: int, eta: float, noise: Noise
) -> Tensor:
    """From t to s along the bridge to x_0, with eta of the reverse SDE's noise z:

        x_s = mu + k sigma_bar_s / sigma_bar_t (x_t - mu) + alpha_s (1 - k r) (x_0 - mu)
              + eta sigma_bar_s sqrt(1 - r^2) z

    with r = exp(-h), h the rise of the half-log-SNR, and k^2 = 1 - eta^2 (1 - r^2). At s = 0,
    where h is infinite, r and sigma_bar_s are 0, and x_s is x_0.
    """
    h = _rise(schedule, now.t, s)
    r, drawn = torch.exp(-h), -torch.expm1(-2 * h)
    k = torch.sqrt(1 - eta**2 + (eta * r) ** 2)
    sigma_bar_s = at(schedule.sigma_bar, s)
    from_x_t = k * sigma_bar_s / at(schedule.sigma_bar, now.t) * (now.x_t - mu)
    from_x_0 = at(schedule.alpha, s) * (1 - k * r) * (x_0 - mu)
    mean = mu + from_x_t + from_x_0
    if eta == 0 or s == 0:
        return mean
    return mean + eta * sigma_bar_s * torch.sqrt(drawn) * noise(now.x_t)


def _midway(schedule: NoiseSchedule, now: Visit, before: Visit | None, s: int) -> Tensor:
    """x_0 extrapolated to the middle of the step, x_0 + h / (2 h') (x_0 - x_0').

    A prime marks the step before. First order, x_0 itself, in the first step, which has none
    before it, and in the last, to s = 0, whose h is infinite.
    """
    x_0 = now.predicted.x_0
    if before is None or s == 0:
        return x_0
    ratio = _rise(schedule, now.t, s) / _rise(schedule, before.t, now.t)
    return x_0 + ratio / 2 * (x_0 - before.predicted.x_0)


def _rise(schedule: NoiseSchedule, t: int, s: int) -> Tensor:
    """Rise h of the half-log-SNR from t to s, shaped as by `at`; infinite to s = 0."""
    return half_log_snr(schedule, s) - half_log_snr(schedule, t)


SAMPLERS: dict[str, Step] = {
    "sde": sde_step,
    "ode": ode_step,
    "posterior": posterior_step,
    "ddim": ddim(eta=0),
    "dpmpp_2m": dpmpp_2m_step,
    "dpmpp_2m_sde": dpmpp_2m_sde_step,
}


def sampler(name: str, eta: float = 0) -> Step:
    """Look a sampler up by its configuration name.

    Raises:
        ValueError: there is none of that name, or it has no eta to be other than 0.
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; choose one of: {', '.join(SAMPLERS)}")
    if name == "ddim":
        return ddim(eta)
    if eta != 0:
        raise ValueError(f"the sampler {name!r} has no eta, got {eta}; give 0, or choose ddim")
    return SAMPLERS[name]


def sample_states(
    step: Step,
    schedule: NoiseSchedule,
    model: Model,
    x: Tensor,
    mu: Tensor,
    times: list[int],
    noise: Noise,
) -> Iterator[Tensor]:
    """Yield the state at each of `times` after the first, starting from x at times[0].

    Raises:
        ValueError: `times` do not fall strictly, or leave 0..T.
    """
    if times != sorted({t for t in times if 0 <= t <= schedule.T}, reverse=True):
        raise ValueError(f"times must fall strictly and stay within 0..{schedule.T}, got {times}")
    before = None
    for t, s in itertools.pairwise(times):
        now = Visit(t, x, model(x, mu, t))
        x = step(schedule, mu, now, before, s, noise)
        before = now
        yield x


def sample(
    step: Step, schedule: NoiseSchedule, model: Model, mu: Tensor, times: list[int], noise: Noise
) -> Tensor:
    """Draw restorations of the degraded images mu `[B, C, H, W]`.

    Returns:
        Images `[B, C, H, W]`, not clamped to [0, 1].

    Raises:
        ValueError: `times` do not fall strictly from T to 0.
    """
    if len(times) < 2 or times[0] != schedule.T or times[-1] != 0:
        raise ValueError(f"times must lead from {schedule.T} to 0, got {times}")
    x_T = sde.prior(schedule, mu, noise(mu))
    states = sample_states(step, schedule, model, x_T, mu, times, noise)
    return collections.deque(states, maxlen=1).pop()


def seeded_noise(seeds: Sequence[int]) -> Noise:
    """Noise with a stream of its own for each image of a batch.

    An image and its seed then give one result whatever batch they are in. Drawn on the CPU, so
    that they do on every device. Each call draws on; the drawing raises a ValueError where the
    batch does not hold one image for each seed.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw(like: Tensor) -> Tensor:
        if len(like) != len(generators):
            raise ValueError(f"got {len(generators)} seeds for a batch of {len(like)} images")
        draws = [torch.randn(like.shape[1:], generator=g) for g in generators]
        return torch.stack(draws).to(like)

    return draw
