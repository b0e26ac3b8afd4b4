"""The few-step samplers on a Gaussian image: what they converge to, how fast, and which are one."""

import math

import pytest
import torch
from torch import Tensor

from modules.diffusion import sde
from modules.diffusion.prediction import Prediction
from modules.diffusion.samplers import (
    Problem,
    Sampler,
    State,
    make_sampler,
    sample_states,
)
from modules.diffusion.schedule import make_noise_schedule
from modules.diffusion.timesteps import TIMESTEP_SPACINGS
from tests.benchmarks.gaussian import Gaussian

IMAGE = Gaussian()
FINE = make_noise_schedule(num_timesteps=4096, dtype=torch.float64)
FIRST, SECOND = (1.9, 2.15), (3.7, 4.3)
"""By what the error falls when the number of calls doubles."""

grids = pytest.mark.parametrize("grid", sorted(TIMESTEP_SPACINGS))


def no_noise(like: Tensor) -> Tensor:
    raise AssertionError("a deterministic step drew noise")


@grids
@pytest.mark.parametrize(
    ("sampler", "falls"),
    [
        (make_sampler("ode"), FIRST),
        (make_sampler("ddim"), FIRST),
        (make_sampler("dpmpp_2m"), SECOND),
        (make_sampler("heun"), SECOND),
    ],
)
def test_the_deterministic_converge_to_the_solution_of_the_ode(
    sampler: Sampler, falls: tuple[float, float], grid: str
) -> None:
    start = torch.linspace(-1, 2, 7, dtype=torch.float64)[:, None, None, None]
    mu, exact = torch.full_like(start, IMAGE.degraded), IMAGE.flow(FINE, start, FINE.T, 0)
    errors = []
    for calls in (128, 256):
        times, model = TIMESTEP_SPACINGS.find(grid)(FINE, calls), IMAGE.model(FINE)
        *_, x = sample_states(sampler, Problem(FINE, model, mu, no_noise), start, times)
        errors.append((x - exact).abs().max().item())
    least, most = falls
    assert least < errors[0] / errors[1] < most
    assert errors[1] < 0.05 * exact.std()


@grids
@pytest.mark.parametrize(
    ("sampler", "falls"),
    [
        (make_sampler("sde"), FIRST),
        (make_sampler("posterior"), (1.85, 2.15)),
        (make_sampler("ddim", eta=0.5), FIRST),
        (make_sampler("ddim", eta=1), (1.85, 2.15)),
        (make_sampler("dpmpp_2m_sde"), SECOND),
    ],
)
def test_the_stochastic_converge_to_the_law_of_the_image(
    sampler: Sampler, falls: tuple[float, float], grid: str
) -> None:
    start, exact = IMAGE.law(FINE, FINE.T), IMAGE.law(FINE, 0)
    errors = [
        IMAGE.sampled(sampler, FINE, TIMESTEP_SPACINGS.find(grid)(FINE, calls), start)[-1].distance(
            exact
        )
        for calls in (128, 256)
    ]
    least, most = falls
    assert least < errors[0] / errors[1] < most
    assert errors[1] < 0.05 * IMAGE.std


def guesses(dtype: torch.dtype, count: int) -> list[Tensor]:
    """Images without any relation to each other."""
    generator = torch.Generator().manual_seed(4)
    shape = (count, 2, 3, 4, 5)
    return list(torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype))


JUMPS = [(100, 99), (100, 1), (100, 0), (60, 37), (5, 2), (2, 1), (1, 0)]


def unasked(x_t: Tensor, mu: Tensor, t: int) -> Prediction:
    raise AssertionError("a sampler of one call a step called the network")


def one_step(sampler: Sampler, t: int, s: int, dtype: torch.dtype) -> Tensor:
    """From a state that noise of order 1 leads to, given the right image; as float64."""
    schedule, images = make_noise_schedule(dtype=dtype), guesses(torch.float64, 4)
    x_0, mu, noise, z = (image.to(dtype) for image in images)
    x_t = sde.diffuse(make_noise_schedule(dtype=torch.float64), images[0], images[1], t, images[2])
    now = State(t, x_t.to(dtype), Prediction(x_0, noise))
    problem = Problem(schedule, unasked, mu, lambda like: z)
    return sampler.step(problem, [now], s).double()


@pytest.mark.parametrize(("t", "s"), JUMPS)
def test_ddim_with_all_the_noise_is_the_posterior(t: int, s: int) -> None:
    found = one_step(make_sampler("ddim", eta=1), t, s, torch.float64)
    expected = one_step(make_sampler("posterior"), t, s, torch.float64)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("t", "s"), JUMPS)
@pytest.mark.parametrize("eta", [0, 0.5, 1])
def test_ddim_loses_no_digits_in_float32(eta: float, t: int, s: int) -> None:
    found, expected = (
        one_step(make_sampler("ddim", eta), t, s, d) for d in (torch.float32, torch.float64)
    )
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("eta", [0, 0.3, 1])
def test_ddim_has_the_right_law_given_the_right_image(eta: float) -> None:
    """Whatever eta, x_s ~ N(E[x_s | x_0], sigma_bar_s^2) follows from x_t of that law."""
    schedule, (x_0, mu, noise, z) = (
        make_noise_schedule(dtype=torch.float64),
        guesses(torch.float64, 4),
    )
    for t, s in JUMPS:
        parts = []
        for n, z_n in ((0 * noise, 0 * z), (noise, 0 * z), (0 * noise, z)):
            x_t = sde.diffuse(schedule, x_0, mu, t, n)
            now = State(t, x_t, Prediction(x_0, n))
            problem = Problem(schedule, unasked, mu, lambda like, z=z_n: z)
            parts.append(make_sampler("ddim", eta).step(problem, [now], s))
        mean = sde.marginal_mean(schedule, x_0, mu, s)
        assert torch.allclose(parts[0], mean, rtol=0, atol=1e-12)
        gains = [((p - mean) / n).mean().item() for p, n in zip(parts[1:], (noise, z), strict=True)]
        assert math.hypot(*gains) == pytest.approx(schedule.sigma_bar[s].item(), abs=1e-12)
        assert gains[1] == pytest.approx(eta * sde.posterior_std(schedule, t, s).item(), abs=1e-12)


@pytest.mark.parametrize(("second", "eta"), [("dpmpp_2m", 0), ("dpmpp_2m_sde", 1)])
def test_first_and_last_steps_are_of_first_order(second: str, eta: float) -> None:
    """So two calls give what the first-order sampler of the same noise gives, and three do not."""
    schedule, (start, mu, z, _) = (
        make_noise_schedule(dtype=torch.float64),
        guesses(torch.float64, 4),
    )

    def end(sampler: Sampler, times: list[int]) -> Tensor:
        model = IMAGE.model(schedule)
        problem = Problem(schedule, model, mu, lambda like: z)
        *_, x = sample_states(sampler, problem, start, times)
        return x

    first = make_sampler("ddim", eta)
    assert torch.equal(end(make_sampler(second), [100, 40, 0]), end(first, [100, 40, 0]))
    assert not torch.allclose(
        end(make_sampler(second), [100, 70, 30, 0]), end(first, [100, 70, 30, 0]), atol=1e-3
    )


@pytest.mark.parametrize("name", ["posterior", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "heun"])
def test_the_last_state_is_the_last_prediction(name: str) -> None:
    schedule, (x_t, x_0, mu, x_0_before) = make_noise_schedule(), guesses(torch.float32, 4)
    before = State(60, x_t, Prediction(x_0_before, x_t))
    for t in (1, 20, 59):
        now = State(t, x_t, Prediction(x_0, x_t))
        problem = Problem(schedule, unasked, mu, torch.randn_like)
        found = make_sampler(name).step(problem, [before, now], 0)
        assert torch.allclose(found, x_0, rtol=0, atol=1e-6)
