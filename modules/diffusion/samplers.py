"""Reverse-time sampling: one loop, and samplers that each carry a state from time t to time s < t.

The model, a callable (x_t, mu, t) -> Prediction, the timesteps and the noise come from outside, so
that every sampler serves every prediction type. A new sampler is a class registered in `SAMPLERS`.

u = (x - mu) / lambda is a variance-preserving diffusion with signal level alpha_t, so the
literature's solvers for those hold as they stand. `ddim`, `dpmpp_2m` and `dpmpp_2m_sde` are one
update, see `_update`, with and without noise, at first and at second order.
"""

from __future__ import annotations

import collections
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from modules.diffusion import sde
from modules.diffusion.prediction import Prediction
from modules.diffusion.schedule import NoiseSchedule, at, half_log_snr
from modules.registry import Registry

Model = Callable[[Tensor, Tensor, int], Prediction]
"""(x_t `[B, C, H, W]`, mu, t) -> prediction."""
Noise = Callable[[Tensor], Tensor]
"""Standard normal noise of the shape, dtype and device of its argument."""


class State(NamedTuple):
    """A state that was visited, and the network's prediction there."""

    t: int
    x_t: Tensor
    prediction: Prediction


class Problem(NamedTuple):
    """What a sampler solves."""

    schedule: NoiseSchedule
    model: Model
    mu: Tensor
    """Degraded images `[B, C, H, W]`."""
    noise: Noise


class Sampler(ABC):
    """One way of taking steps; deterministic samplers draw no noise."""

    history_size: ClassVar[int] = 1
    """The most states of the history that a step reads."""

    @abstractmethod
    def step(self, problem: Problem, history: Sequence[State], s: int) -> Tensor:
        """The state x_s.

        Args:
            problem: what is solved; its model may be called within a step, too.
            history: the states visited last, at most `history_size`; the current one is the last.
            s: the timestep to reach, below the current one.
        """

    def network_calls(self, num_steps: int) -> int:
        """Network calls that so many steps take."""
        return num_steps


SAMPLERS: Registry[type[Sampler]] = Registry("sampler")


@SAMPLERS.register("sde")
class SdeSampler(Sampler):
    """Euler-Maruyama on the reverse SDE."""

    def step(self, problem: Problem, history: Sequence[State], s: int) -> Tensor:
        """One step; draws noise."""
        (schedule, _, mu, noise), (t, x_t, prediction) = problem, history[-1]
        score = sde.score(schedule, prediction.epsilon, t)
        return sde.reverse_sde_step(schedule, x_t, mu, score, t, s, noise(x_t))


@SAMPLERS.register("ode")
class OdeSampler(Sampler):
    """Euler on the probability-flow ODE."""

    def step(self, problem: Problem, history: Sequence[State], s: int) -> Tensor:
        """One step, deterministic."""
        (schedule, _, mu, _), (t, x_t, prediction) = problem, history[-1]
        score = sde.score(schedule, prediction.epsilon, t)
        return sde.reverse_ode_step(schedule, x_t, mu, score, t, s)


@SAMPLERS.register("posterior")
class PosteriorSampler(Sampler):
    """A draw of q(x_s | x_t, x_0) in closed form; exact for any s < t given the right x_0."""

    def step(self, problem: Problem, history: Sequence[State], s: int) -> Tensor:
        """One step; draws noise but for s = 0, where its standard deviation is 0."""
        (schedule, _, mu, noise), (t, x_t, (x_0, _)) = problem, history[-1]
        if s == 0:
            return sde.posterior_mean(schedule, x_t, x_0, mu, t, s)
        return sde.posterior_step(schedule, x_t, x_0, mu, t, s, noise(x_t))


@SAMPLERS.register("ddim")
class DdimSampler(Sampler):
    """DDIM (Song et al., ICLR 2021, arXiv 2010.02502, eqs. 12 and 16)."""

    def __init__(self, eta: float = 0) -> None:
        """Choose how stochastic it is.

        Args:
            eta: share of the posterior's noise that is drawn, in 0..1: at 0 the step solves the
                probability-flow ODE and draws none, at 1 it is the posterior step.

        Raises:
            ValueError: `eta` is out of range.
        """
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be in 0..1, got {eta}")
        self.eta = eta

    def step(self, problem: Problem, history: Sequence[State], s: int) -> Tensor:
        """One step of first order."""
        return _update(problem, history[-1], history[-1].prediction.x_0, s, self.eta)


@SAMPLERS.register("dpmpp_2m")
class Dpmpp2mSampler(Sampler):
    """DPM-Solver++(2M) (Lu et al., arXiv 2211.01095, algorithm 2)."""

    history_size = 2
    eta: ClassVar[float] = 0

    def step(self, problem: Problem, history: Sequence[State], s: int) -> Tensor:
        """One step of second order, of first order at the start and at the end."""
        x_0 = _midway(problem.schedule, history, s)
        return _update(problem, history[-1], x_0, s, self.eta)


@SAMPLERS.register("dpmpp_2m_sde")
class Dpmpp2mSdeSampler(Dpmpp2mSampler):
    """SDE-DPM-Solver++(2M) (the same, section 6): as dpmpp_2m, on the reverse SDE."""

    eta = 1


@SAMPLERS.register("heun")
class HeunSampler(Sampler):
    """Heun's method as EDM has it (Karras et al., NeurIPS 2022, arXiv 2206.00364, algorithm 1).

    With no added noise, on the probability-flow ODE of y = (x - mu) / alpha_t, whose noise level is
    sigma_t = sigma_bar_t / alpha_t and whose derivative dy / dsigma is the predicted noise. Two
    network calls a step, and one in the last step, to s = 0.
    """

    def step(self, problem: Problem, history: Sequence[State], s: int) -> Tensor:
        """An Euler step, which is DDIM's, corrected by the derivative where it ends:

        x_s = x_s' + alpha_s (sigma_s - sigma_t) (noise' - noise) / 2,    sigma_t / sigma_s = exp(h)
        """
        (schedule, model, mu, _), now = problem, history[-1]
        x_s = _update(problem, now, now.prediction.x_0, s, eta=0)
        if s == 0:
            return x_s
        change = model(x_s, mu, s).epsilon - now.prediction.epsilon
        slope = -at(schedule.sigma_bar, s) * torch.expm1(_rise(schedule, now.t, s))
        return x_s + slope / 2 * change

    def network_calls(self, num_steps: int) -> int:
        """Two a step, one in the last."""
        return 2 * num_steps - 1


def _update(problem: Problem, now: State, x_0: Tensor, s: int, eta: float) -> Tensor:
    """From t to s along the bridge to x_0, with eta of the reverse SDE's noise z:

        x_s = mu + k sigma_bar_s / sigma_bar_t (x_t - mu) + alpha_s (1 - k r) (x_0 - mu)
              + eta sigma_bar_s sqrt(1 - r^2) z

    with r = exp(-h), h the rise of the half-log-SNR, and k^2 = 1 - eta^2 (1 - r^2). At s = 0,
    where h is infinite, r and sigma_bar_s are 0, and x_s is x_0.
    """
    schedule, _, mu, noise = problem
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


def _midway(schedule: NoiseSchedule, history: Sequence[State], s: int) -> Tensor:
    """x_0 extrapolated to the middle of the step, x_0 + h / (2 h') (x_0 - x_0').

    A prime marks the step before. First order, x_0 itself, in the first step, which has none
    before it, and in the last, to s = 0, whose h is infinite.
    """
    now = history[-1]
    x_0 = now.prediction.x_0
    if len(history) < 2 or s == 0:
        return x_0
    before = history[-2]
    ratio = _rise(schedule, now.t, s) / _rise(schedule, before.t, now.t)
    return x_0 + ratio / 2 * (x_0 - before.prediction.x_0)


def _rise(schedule: NoiseSchedule, t: int, s: int) -> Tensor:
    """Rise h of the half-log-SNR from t to s, shaped as by `at`; infinite to s = 0."""
    return half_log_snr(schedule, s) - half_log_snr(schedule, t)


def make_sampler(name: str, eta: float = 0) -> Sampler:
    """The sampler of a name in `SAMPLERS`.

    Raises:
        ValueError: there is none of that name, or it has no eta to be other than 0.
    """
    kind = SAMPLERS.find(name)
    if "eta" in signature(kind).parameters:
        return kind(eta)  # type: ignore[call-arg]
    if eta != 0:
        raise ValueError(f"the sampler {name!r} has no eta, got {eta}; give 0, or choose ddim")
    return kind()


def sample_states(
    sampler: Sampler, problem: Problem, x: Tensor, times: list[int]
) -> Iterator[Tensor]:
    """Yield the state at each of `times` after the first, starting from x at times[0].

    Raises:
        ValueError: `times` do not fall strictly, or leave 0..T.
    """
    T = problem.schedule.T
    if times != sorted({t for t in times if 0 <= t <= T}, reverse=True):
        raise ValueError(f"times must fall strictly and stay within 0..{T}, got {times}")
    history: collections.deque[State] = collections.deque(maxlen=sampler.history_size)
    for t, s in itertools.pairwise(times):
        history.append(State(t, x, problem.model(x, problem.mu, t)))
        x = sampler.step(problem, history, s)
        yield x


def sample(sampler: Sampler, problem: Problem, times: list[int]) -> Tensor:
    """Draw restorations of the degraded images.

    Returns:
        Images `[B, C, H, W]`, not clamped to [0, 1].

    Raises:
        ValueError: `times` do not fall strictly from T to 0.
    """
    T, mu = problem.schedule.T, problem.mu
    if len(times) < 2 or times[0] != T or times[-1] != 0:
        raise ValueError(f"times must lead from {T} to 0, got {times}")
    x_T = sde.prior(problem.schedule, mu, problem.noise(mu))
    states = sample_states(sampler, problem, x_T, times)
    return collections.deque(states, maxlen=1).pop()
