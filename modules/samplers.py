"""Reverse-time sampling: one loop, and steps that each carry a state from time t to time s < t.

A sampler is a `Step`, a pure function; the loop, the model and the noise come from outside. The
model is a callable (x_t, mu, t) -> Prediction, so every step serves every parameterisation.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from modules import sde
from modules.prediction import Prediction
from modules.sde import Tables

Model = Callable[[Tensor, Tensor, int], Prediction]
"""(x_t `[B, C, H, W]`, mu, t) -> prediction."""
Noise = Callable[[Tensor], Tensor]
"""Standard normal noise of the shape, dtype and device of its argument."""
Step = Callable[[Tables, Tensor, Tensor, Prediction, int, int, Noise], Tensor]
"""(tables, x_t, mu, prediction, t, s, noise) -> x_s."""


def sde_step(
    tables: Tables, x_t: Tensor, mu: Tensor, predicted: Prediction, t: int, s: int, noise: Noise
) -> Tensor:
    """Euler-Maruyama on the reverse SDE."""
    score = sde.score(tables, predicted.noise, t)
    return sde.reverse_sde_step(tables, x_t, mu, score, t, s, noise(x_t))


def ode_step(
    tables: Tables, x_t: Tensor, mu: Tensor, predicted: Prediction, t: int, s: int, noise: Noise
) -> Tensor:
    """Euler on the probability-flow ODE; draws no noise."""
    score = sde.score(tables, predicted.noise, t)
    return sde.reverse_ode_step(tables, x_t, mu, score, t, s)


def posterior_step(
    tables: Tables, x_t: Tensor, mu: Tensor, predicted: Prediction, t: int, s: int, noise: Noise
) -> Tensor:
    """A draw of q(x_s | x_t, x_0) in closed form; exact for any s < t given the right x_0."""
    return sde.posterior_step(tables, x_t, predicted.x_0, mu, t, s, noise(x_t))


SAMPLERS: dict[str, Step] = {"sde": sde_step, "ode": ode_step, "posterior": posterior_step}


def sampler(name: str) -> Step:
    """Look a sampler up by its configuration name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; choose one of: {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def uniform_times(T: int, calls: int) -> list[int]:
    """Times T = t_0 > t_1 > ... > t_calls = 0, as evenly spaced as whole numbers allow.

    Raises:
        ValueError: `calls` is not in 1..T.
    """
    if not 1 <= calls <= T:
        raise ValueError(f"the number of network calls must be in 1..{T}, got {calls}")
    return [round(T * (calls - i) / calls) for i in range(calls + 1)]


def sample_states(
    step: Step, tables: Tables, model: Model, x: Tensor, mu: Tensor, times: list[int], noise: Noise
) -> Iterator[Tensor]:
    """Yield the state at each of `times` after the first, starting from x at times[0].

    Raises:
        ValueError: `times` do not fall strictly, or leave 0..T.
    """
    if times != sorted({t for t in times if 0 <= t <= tables.T}, reverse=True):
        raise ValueError(f"times must fall strictly and stay within 0..{tables.T}, got {times}")
    for t, s in itertools.pairwise(times):
        x = step(tables, x, mu, model(x, mu, t), t, s, noise)
        yield x


def sample(
    step: Step, tables: Tables, model: Model, mu: Tensor, times: list[int], noise: Noise
) -> Tensor:
    """Draw restorations of the degraded images mu `[B, C, H, W]`.

    Returns:
        Images `[B, C, H, W]`, not clamped to [0, 1].

    Raises:
        ValueError: `times` do not fall strictly from T to 0.
    """
    if len(times) < 2 or times[0] != tables.T or times[-1] != 0:
        raise ValueError(f"times must lead from {tables.T} to 0, got {times}")
    x_T = sde.prior(tables, mu, noise(mu))
    states = sample_states(step, tables, model, x_T, mu, times, noise)
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
