"""Samplers against the reference's trajectories and against the laws of a Gaussian image."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modules.prediction import Prediction, parameterisation
from modules.samplers import (
    SAMPLERS,
    Model,
    Noise,
    sample,
    sample_states,
    sampler,
    seeded_noise,
    uniform_times,
)
from modules.sde import SCHEDULES, Tables, at, make_tables, noise_from_data
from tests.golden_vectors import golden_tensors, relative_error

INPUTS = golden_tensors("irsde/inputs")
X_0, MU = INPUTS["x0"], INPUTS["mu"]
TINY = golden_tensors("irsde/tinynet")
DRAWS = golden_tensors("irsde/cosine")["traj.randn_seed13"]

names = pytest.mark.parametrize("name", sorted(SAMPLERS))
schedules = pytest.mark.parametrize("schedule", sorted(SCHEDULES))


# Reference trajectories


def tiny_network(x: Tensor, mu: Tensor, t: float) -> Tensor:
    """The reference vectors' noise predictor."""
    hidden = F.conv2d(torch.cat([x - mu, mu], 1), TINY["c1.weight"], TINY["c1.bias"], padding=1)
    hidden = F.silu(hidden + t / 100 * TINY["tvec_bias"].reshape(1, -1, 1, 1))
    bounded = F.conv2d(hidden, TINY["c2.weight"], TINY["c2.bias"], padding=1).tanh()
    return 5 * (x - mu) + 0.5 * bounded


def reference_model(kind: str, tables: Tables) -> Model:
    """`exact` knows the noise of X_0, `tiny` asks the network, whose time runs to 100."""

    def exact(x: Tensor, mu: Tensor, t: int) -> Prediction:
        return Prediction(X_0, noise_from_data(tables, x, X_0, mu, t))

    def tiny(x: Tensor, mu: Tensor, t: int) -> Prediction:
        noise = tiny_network(x, mu, t * 100 / tables.T)
        return parameterisation("noise")(tables, noise, x, mu, t)

    return {"exact": exact, "tiny": tiny}[kind]


def stored_noise(draws: Tensor) -> Noise:
    remaining = iter(draws)
    return lambda like: next(remaining)


@names
@schedules
@pytest.mark.parametrize("kind", ["exact", "tiny"])
def test_trajectories_match_the_reference(kind: str, schedule: str, name: str) -> None:
    golden, tables = golden_tensors(f"irsde/{schedule}"), make_tables(schedule)
    model, times = reference_model(kind, tables), uniform_times(100, 100)
    start = golden["noise_state_seed12"]
    states = list(
        sample_states(sampler(name), tables, model, start, MU, times, stored_noise(DRAWS))
    )
    assert relative_error(states[-1], golden[f"traj.{kind}.{name}.final"]) < 1e-6
    if schedule == "cosine":
        found = torch.stack([start, *states])[:, 0]
        assert relative_error(found, golden[f"traj.{kind}.{name}.states_first_item"]) < 1e-6


@schedules
def test_fewer_steps_the_reference_way(schedule: str) -> None:
    """A table of its own for 20 steps, with the network's times scaled to 100."""
    golden, tables = golden_tensors(f"irsde/{schedule}"), make_tables(schedule, T=20)
    for table, name in ((tables.theta, "thetas"), (tables.sigma_bar, "sigma_bars")):
        assert relative_error(table, golden[f"sampleT20.{name}"]) < 1e-6
    assert tables.dt == golden["sampleT20.dt"].item()
    times = uniform_times(20, 20)
    assert [t * 100 / 20 for t in times[:-1]] == golden["sampleT20.model_times"].tolist()
    *_, x = sample_states(
        sampler("posterior"),
        tables,
        reference_model("tiny", tables),
        golden["noise_state_seed12"],
        MU,
        times,
        stored_noise(DRAWS),
    )
    assert relative_error(x, golden["sampleT20.tiny.posterior.final"]) < 1e-6


# Laws: every pixel is x_0 ~ N(MEAN, STD^2), degraded to DEGRADED

MEAN, STD, DEGRADED = 0.7, 0.1, 0.3


def marginal_law(tables: Tables, t: int) -> tuple[float, float]:
    """Mean and variance of x_t."""
    alpha, sigma_bar = tables.alpha[t].item(), tables.sigma_bar[t].item()
    return DEGRADED + (MEAN - DEGRADED) * alpha, (STD * alpha) ** 2 + sigma_bar**2


def gaussian_model(tables: Tables) -> Model:
    """The exact denoiser, E[x_0 | x_t]."""

    def model(x: Tensor, mu: Tensor, t: int) -> Prediction:
        mean, var = marginal_law(tables, t)
        x_0 = MEAN + STD**2 * tables.alpha[t] / var * (x - mean)
        return Prediction(x_0, noise_from_data(tables, x, x_0, mu, t))

    return model


def laws(
    name: str, tables: Tables, times: list[int], mean: float, var: float
) -> list[tuple[float, float]]:
    """Mean and variance of the sampler's state at each of `times` after the first.

    Exact: the model is affine in x, so each step is affine in x and in its noise.
    """
    mu, model = torch.full((1, 1, 1, 1), DEGRADED, dtype=torch.float64), gaussian_model(tables)
    found = []
    for t, s in itertools.pairwise(times):

        def step(x: float, z: float, t: int = t, s: int = s) -> float:
            x_t = torch.full_like(mu, x)
            predicted = model(x_t, mu, t)
            noise = torch.full_like(mu, z)
            return SAMPLERS[name](tables, x_t, mu, predicted, t, s, lambda _: noise).item()

        origin = step(mean, 0)
        slope, gain = step(mean + 1, 0) - origin, step(mean, 1) - origin
        mean, var = origin, slope**2 * var + gain**2
        found.append((mean, var))
    return found


def largest_errors(name: str, schedule: str, T: int) -> tuple[float, float]:
    """Of mean and standard deviation against x_t's, over all times, from the law of x_T on."""
    tables, times = make_tables(schedule, T=T, dtype=torch.float64), uniform_times(T, T)
    found = laws(name, tables, times, *marginal_law(tables, T))
    expected = [marginal_law(tables, t) for t in times[1:]]
    pairs = list(zip(found, expected, strict=True))
    means = max(abs(f[0] - e[0]) for f, e in pairs)
    return means, max(abs(math.sqrt(f[1]) - math.sqrt(e[1])) for f, e in pairs)


@names
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_every_state_converges_to_its_law(name: str, schedule: str) -> None:
    """At first order in the number of steps, with nothing left over."""
    coarse, fine = (largest_errors(name, schedule, T) for T in (100, 200))
    assert fine[0] < 0.04 * STD
    assert fine[1] < 0.04 * STD
    assert fine[1] / coarse[1] < 0.56
    if name == "posterior":
        assert coarse[0] < 1e-10  # its mean is exact however many steps are taken
    else:
        assert fine[0] / coarse[0] < 0.56


@names
@pytest.mark.parametrize("calls", [10, 100])
def test_samples_have_the_law_of_their_steps(name: str, calls: int) -> None:
    """The loop starts from the prior and draws each step's noise anew and independently."""
    tables, count = make_tables(dtype=torch.float64), 30_000
    mu = torch.full((1, 1, 150, count // 150), DEGRADED, dtype=torch.float64)
    generator, times = torch.Generator().manual_seed(7), uniform_times(100, calls)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    x = sample(sampler(name), tables, gaussian_model(tables), mu, times, noise)
    mean, var = laws(name, tables, times, DEGRADED, tables.lambda_**2)[-1]
    assert abs(x.mean().item() - mean) < 4 * math.sqrt(var / count)
    assert abs(x.var().item() - var) < 4 * var * math.sqrt(2 / count)


@schedules
@pytest.mark.parametrize("times", [[100, 0], [100, 99, 50, 2, 1, 0], uniform_times(100, 100)])
def test_posterior_with_the_right_image_has_every_law_right(
    schedule: str, times: list[int]
) -> None:
    """Given x_0 itself, x_s ~ N(E[x_s | x_0], sigma_bar_s^2) after steps of any size."""
    tables, count = make_tables(schedule, dtype=torch.float64), 30_000
    x_0, mu = (
        torch.full((1, 1, 150, count // 150), v, dtype=torch.float64) for v in (MEAN, DEGRADED)
    )
    generator = torch.Generator().manual_seed(3)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    def model(x: Tensor, mu: Tensor, t: int) -> Prediction:
        return Prediction(x_0, noise_from_data(tables, x, x_0, mu, t))

    x = mu + (x_0 - mu) * tables.alpha[-1] + tables.sigma_bar[-1] * noise(mu)
    states = sample_states(sampler("posterior"), tables, model, x, mu, times, noise)
    for s, x in zip(times[1:], states, strict=True):
        mean = (mu + (x_0 - mu) * at(tables.alpha, s)).mean()
        std = tables.sigma_bar[s].item()
        assert abs(x.mean() - mean) <= 5 * std / math.sqrt(count) + 1e-12
        assert abs(x.std().item() - std) <= 5 * std / math.sqrt(2 * count) + 1e-12
    assert torch.allclose(x, x_0, rtol=0, atol=1e-10)


# Contracts


@names
def test_an_image_and_its_seed_give_one_result_in_any_batch(name: str) -> None:
    tables, times = make_tables(), uniform_times(100, 5)
    mu = torch.rand((3, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    before, seeds = mu.clone(), [5, 6, 7]

    def restore(mu: Tensor, seeds: list[int]) -> Tensor:
        noise = seeded_noise(seeds)
        return sample(sampler(name), tables, gaussian_model(tables), mu, times, noise)

    together = restore(mu, seeds)
    assert torch.equal(mu, before)
    assert torch.equal(restore(mu, seeds), together)
    assert torch.equal(restore(mu.flip(0), seeds[::-1]).flip(0), together)
    for i, seed in enumerate(seeds):
        assert torch.equal(restore(mu[i : i + 1], [seed])[0], together[i])
    assert not torch.equal(restore(mu, [5, 6, 8])[2], together[2])


def test_the_ode_draws_noise_only_to_start() -> None:
    tables, drawn = make_tables(), []

    def noise(like: Tensor) -> Tensor:
        drawn.append(like.shape)
        return torch.ones_like(like)

    times = uniform_times(100, 5)
    sample(sampler("ode"), tables, gaussian_model(tables), MU, times, noise)
    assert drawn == [MU.shape]


def test_uniform_times_fall_strictly_and_evenly() -> None:
    for T, calls in itertools.product((1, 2, 20, 99, 100), range(1, 101)):
        if calls > T:
            continue
        times = uniform_times(T, calls)
        assert (times[0], times[-1], len(times)) == (T, 0, calls + 1)
        gaps = {t - s for t, s in itertools.pairwise(times)}
        assert gaps <= {math.floor(T / calls), math.ceil(T / calls)}
        exact = [T - i * T / calls for i in range(calls + 1)]
        assert all(abs(t - e) <= 0.5 for t, e in zip(times, exact, strict=True))
    assert uniform_times(100, 4) == [100, 75, 50, 25, 0]


def sample_at(times: list[int]) -> Callable[[], Tensor]:
    tables = make_tables()
    noise = seeded_noise([0, 1])
    return lambda: sample(sampler("ode"), tables, gaussian_model(tables), MU, times, noise)


@pytest.mark.parametrize("times", [[], [100], [99, 0], [100, 1], [0, 100]])
def test_times_that_miss_the_ends_are_refused(times: list[int]) -> None:
    with pytest.raises(ValueError, match="from 100 to 0"):
        sample_at(times)()


@pytest.mark.parametrize("times", [[100, 40, 40, 0], [100, 40, 50, 0], [100, 120, 0], [100, -1, 0]])
def test_times_that_do_not_fall_are_refused(times: list[int]) -> None:
    with pytest.raises(ValueError, match=r"fall strictly.*0\.\.100"):
        sample_at(times)()


def test_times_below_the_clean_image_are_refused() -> None:
    tables = make_tables()
    states = sample_states(
        sampler("ode"), tables, gaussian_model(tables), MU, MU, [100, -1], torch.zeros_like
    )
    with pytest.raises(ValueError, match=r"within 0\.\.100"):
        next(states)


@pytest.mark.parametrize("calls", [0, 101, -1])
def test_a_number_of_calls_out_of_range_is_refused(calls: int) -> None:
    with pytest.raises(ValueError, match=f"1..100, got {calls}"):
        uniform_times(100, calls)


def test_a_seed_is_needed_for_each_image() -> None:
    with pytest.raises(ValueError, match="3 seeds for a batch of 2 images"):
        seeded_noise([1, 2, 3])(MU)


def test_unknown_sampler_is_answered_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'euler'.*sde, ode, posterior"):
        sampler("euler")
