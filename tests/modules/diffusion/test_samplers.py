"""Samplers against the reference's trajectories and against the laws of a Gaussian image."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modules.diffusion.prediction import PREDICTION_TYPES, Prediction
from modules.diffusion.samplers import (
    SAMPLERS,
    Model,
    Noise,
    Problem,
    Sampler,
    make_sampler,
    sample,
    sample_states,
)
from modules.diffusion.schedule import NOISE_SCHEDULES, NoiseSchedule, at, make_noise_schedule
from modules.diffusion.sde import epsilon_from_sample
from modules.diffusion.timesteps import TIMESTEP_SPACINGS, uniform_timesteps
from modules.inference.noise import place_noise
from tests.benchmarks.gaussian import Gaussian, Law
from tests.golden_vectors import golden_tensors, relative_error

INPUTS = golden_tensors("irsde/inputs")
X_0, MU = INPUTS["x0"], INPUTS["mu"]
TINY = golden_tensors("irsde/tinynet")
DRAWS = golden_tensors("irsde/cosine")["traj.randn_seed13"]

EVERY_TIME = list(range(100, -1, -1))

names = pytest.mark.parametrize("name", sorted(SAMPLERS))
schedules = pytest.mark.parametrize("schedule", sorted(NOISE_SCHEDULES))


# Reference trajectories


def tiny_network(x: Tensor, mu: Tensor, t: float) -> Tensor:
    """The reference vectors' noise predictor."""
    hidden = F.conv2d(torch.cat([x - mu, mu], 1), TINY["c1.weight"], TINY["c1.bias"], padding=1)
    hidden = F.silu(hidden + t / 100 * TINY["tvec_bias"].reshape(1, -1, 1, 1))
    bounded = F.conv2d(hidden, TINY["c2.weight"], TINY["c2.bias"], padding=1).tanh()
    return 5 * (x - mu) + 0.5 * bounded


def reference_model(kind: str, schedule: NoiseSchedule) -> Model:
    """`exact` knows the noise of X_0, `tiny` asks the network, whose time runs to 100."""

    def exact(x: Tensor, mu: Tensor, t: int) -> Prediction:
        return Prediction(X_0, epsilon_from_sample(schedule, x, X_0, mu, t))

    def tiny(x: Tensor, mu: Tensor, t: int) -> Prediction:
        noise = tiny_network(x, mu, t * 100 / schedule.T)
        return PREDICTION_TYPES.find("epsilon")(schedule, noise, x, mu, t)

    return {"exact": exact, "tiny": tiny}[kind]


def stored_noise(draws: Tensor) -> Noise:
    remaining = iter(draws)
    return lambda like: next(remaining)


@pytest.mark.parametrize("name", ["sde", "ode", "posterior"])
@schedules
@pytest.mark.parametrize("kind", ["exact", "tiny"])
def test_trajectories_match_the_reference(kind: str, schedule: str, name: str) -> None:
    golden, schedule = golden_tensors(f"irsde/{schedule}"), make_noise_schedule(schedule)
    model, times = reference_model(kind, schedule), EVERY_TIME
    start = golden["noise_state_seed12"]
    states = list(
        sample_states(
            make_sampler(name), Problem(schedule, model, MU, stored_noise(DRAWS)), start, times
        )
    )
    assert relative_error(states[-1], golden[f"traj.{kind}.{name}.final"]) < 1e-6
    if schedule == "cosine":
        found = torch.stack([start, *states])[:, 0]
        assert relative_error(found, golden[f"traj.{kind}.{name}.states_first_item"]) < 1e-6


@schedules
def test_fewer_steps_the_reference_way(schedule: str) -> None:
    """A table of its own for 20 steps, with the network's times scaled to 100."""
    golden, schedule = (
        golden_tensors(f"irsde/{schedule}"),
        make_noise_schedule(schedule, num_timesteps=20),
    )
    for table, name in ((schedule.theta, "thetas"), (schedule.sigma_bar, "sigma_bars")):
        assert relative_error(table, golden[f"sampleT20.{name}"]) < 1e-6
    assert schedule.dt == golden["sampleT20.dt"].item()
    times = uniform_timesteps(schedule, 20)
    assert [t * 100 / 20 for t in times[:-1]] == golden["sampleT20.model_times"].tolist()
    *_, x = sample_states(
        make_sampler("posterior"),
        Problem(schedule, reference_model("tiny", schedule), MU, stored_noise(DRAWS)),
        golden["noise_state_seed12"],
        times,
    )
    assert relative_error(x, golden["sampleT20.tiny.posterior.final"]) < 1e-6


# Laws: every pixel is normal, and the network the exact denoiser

IMAGE = Gaussian()


def largest_errors(sampler: Sampler, schedule: str, T: int) -> tuple[float, float]:
    """Of mean and standard deviation against x_t's, over all times, from the law of x_T on."""
    schedule = make_noise_schedule(schedule, num_timesteps=T, dtype=torch.float64)
    times = uniform_timesteps(schedule, T)
    found = IMAGE.sampled(sampler, schedule, times, IMAGE.law(schedule, T))
    expected = [IMAGE.law(schedule, t) for t in times[1:]]
    pairs = list(zip(found, expected, strict=True))
    means = max(abs(f.mean - e.mean) for f, e in pairs)
    return means, max(abs(math.sqrt(f.var) - math.sqrt(e.var)) for f, e in pairs)


@names
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_every_state_converges_to_its_law(name: str, schedule: str) -> None:
    """At first order in the number of steps or better, with nothing left over."""
    coarse, fine = (largest_errors(make_sampler(name), schedule, T) for T in (100, 200))
    assert fine[0] < 0.04 * IMAGE.std
    assert fine[1] < 0.04 * IMAGE.std
    assert fine[1] / coarse[1] < 0.56
    if name in ("sde", "ode"):
        assert fine[0] / coarse[0] < 0.56
    else:
        assert coarse[0] < 1e-10  # their means are exact however many steps are taken


@names
@pytest.mark.parametrize("calls", [10, 100])
def test_samples_have_the_law_of_their_steps(name: str, calls: int) -> None:
    """The loop starts from the prior and draws each step's noise anew and independently."""
    schedule, count = make_noise_schedule(dtype=torch.float64), 30_000
    mu = torch.full((1, 1, 150, count // 150), IMAGE.degraded, dtype=torch.float64)
    generator, times = torch.Generator().manual_seed(7), uniform_timesteps(schedule, calls)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    x = sample(make_sampler(name), Problem(schedule, IMAGE.model(schedule), mu, noise), times)
    start = Law(IMAGE.degraded, schedule.lambda_**2)
    mean, var = IMAGE.sampled(make_sampler(name), schedule, times, start)[-1]
    assert abs(x.mean().item() - mean) < 4 * math.sqrt(var / count)
    assert abs(x.var().item() - var) < 4 * var * math.sqrt(2 / count)


@schedules
@pytest.mark.parametrize("times", [[100, 0], [100, 99, 50, 2, 1, 0], EVERY_TIME])
def test_posterior_with_the_right_image_has_every_law_right(
    schedule: str, times: list[int]
) -> None:
    """Given x_0 itself, x_s ~ N(E[x_s | x_0], sigma_bar_s^2) after steps of any size."""
    schedule, count = make_noise_schedule(schedule, dtype=torch.float64), 30_000
    x_0, mu = (
        torch.full((1, 1, 150, count // 150), v, dtype=torch.float64)
        for v in (IMAGE.mean, IMAGE.degraded)
    )
    generator = torch.Generator().manual_seed(3)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    def model(x: Tensor, mu: Tensor, t: int) -> Prediction:
        return Prediction(x_0, epsilon_from_sample(schedule, x, x_0, mu, t))

    x = mu + (x_0 - mu) * schedule.alpha[-1] + schedule.sigma_bar[-1] * noise(mu)
    states = sample_states(make_sampler("posterior"), Problem(schedule, model, mu, noise), x, times)
    for s, x in zip(times[1:], states, strict=True):
        mean = (mu + (x_0 - mu) * at(schedule.alpha, s)).mean()
        std = schedule.sigma_bar[s].item()
        assert abs(x.mean() - mean) <= 5 * std / math.sqrt(count) + 1e-12
        assert abs(x.std().item() - std) <= 5 * std / math.sqrt(2 * count) + 1e-12
    assert torch.allclose(x, x_0, rtol=0, atol=1e-10)


# Contracts


@names
def test_an_image_and_its_seed_give_one_result_in_any_batch(name: str) -> None:
    schedule, times = make_noise_schedule(), [100, 82, 60, 29, 7, 0]
    mu = torch.rand((3, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    before, seeds = mu.clone(), [5, 6, 7]

    def restore(mu: Tensor, seeds: list[int]) -> Tensor:
        noise = place_noise(seeds, 0, 0)
        return sample(
            make_sampler(name), Problem(schedule, IMAGE.model(schedule), mu, noise), times
        )

    together = restore(mu, seeds)
    assert torch.equal(mu, before)
    assert torch.equal(restore(mu, seeds), together)
    assert torch.equal(restore(mu.flip(0), seeds[::-1]).flip(0), together)
    for i, seed in enumerate(seeds):
        assert torch.equal(restore(mu[i : i + 1], [seed])[0], together[i])
    assert not torch.equal(restore(mu, [5, 6, 8])[2], together[2])


@pytest.mark.parametrize(
    ("sampler", "draws"),
    [
        (make_sampler("ode"), 1),
        (make_sampler("ddim"), 1),
        (make_sampler("dpmpp_2m"), 1),
        (make_sampler("heun"), 1),
        (make_sampler("ddim", eta=0.5), 5),
        (make_sampler("dpmpp_2m_sde"), 5),
        (make_sampler("posterior"), 5),
        (make_sampler("sde"), 6),
    ],
)
def test_no_noise_is_drawn_where_it_would_have_no_weight(sampler: Sampler, draws: int) -> None:
    schedule, drawn = make_noise_schedule(), []

    def noise(like: Tensor) -> Tensor:
        drawn.append(like.shape)
        return torch.ones_like(like)

    times = uniform_timesteps(schedule, 5)
    sample(sampler, Problem(schedule, IMAGE.model(schedule), MU, noise), times)
    assert drawn == [MU.shape] * draws


@names
@pytest.mark.parametrize("grid", sorted(TIMESTEP_SPACINGS))
@pytest.mark.parametrize("T", [1, 2, 100])
def test_any_number_of_steps_works(T: int, grid: str, name: str) -> None:
    schedule = make_noise_schedule(num_timesteps=T)
    for steps in {n for n in (1, 2, 3, 7, 50, 99, 100) if n <= T}:
        noise, asked = place_noise([0, 1], 0, 0), []

        def model(x: Tensor, mu: Tensor, t: int, asked: list[int] = asked) -> Prediction:
            asked.append(t)
            return Prediction(X_0, epsilon_from_sample(schedule, x, X_0, mu, t))

        times = TIMESTEP_SPACINGS.find(grid)(schedule, steps)
        x = sample(make_sampler(name), Problem(schedule, model, MU, noise), times)
        assert len(asked) == make_sampler(name).network_calls(steps)
        assert x.isfinite().all()
        if name not in ("sde", "ode"):
            # Right predictions end in the right image, in float32 and with steps that are small.
            assert relative_error(x, X_0) < 1e-4


def sample_at(times: list[int]) -> Callable[[], Tensor]:
    schedule = make_noise_schedule()
    noise = place_noise([0, 1], 0, 0)
    return lambda: sample(
        make_sampler("ode"), Problem(schedule, IMAGE.model(schedule), MU, noise), times
    )


@pytest.mark.parametrize("times", [[], [100], [99, 0], [100, 1], [0, 100]])
def test_times_that_miss_the_ends_are_refused(times: list[int]) -> None:
    with pytest.raises(ValueError, match="from 100 to 0"):
        sample_at(times)()


@pytest.mark.parametrize("times", [[100, 40, 40, 0], [100, 40, 50, 0], [100, 120, 0], [100, -1, 0]])
def test_times_that_do_not_fall_are_refused(times: list[int]) -> None:
    with pytest.raises(ValueError, match=r"fall strictly.*0\.\.100"):
        sample_at(times)()


def test_times_below_the_clean_image_are_refused() -> None:
    schedule = make_noise_schedule()
    states = sample_states(
        make_sampler("ode"),
        Problem(schedule, IMAGE.model(schedule), MU, torch.zeros_like),
        MU,
        [100, -1],
    )
    with pytest.raises(ValueError, match=r"within 0\.\.100"):
        next(states)


def test_a_seed_is_needed_for_each_image() -> None:
    with pytest.raises(ValueError, match="3 seeds for a batch of 2 images"):
        place_noise([1, 2, 3], 0, 0)(MU)


def test_unknown_sampler_is_answered_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'euler'.*sde, ode, posterior, ddim, dpmpp_2m"):
        make_sampler("euler")


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_out_of_range_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match=rf"eta must be in 0\.\.1, got {eta}"):
        make_sampler("ddim", eta)


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"ddim"}))
def test_eta_of_a_sampler_that_has_none_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name!r} has no eta, got 0.5"):
        make_sampler(name, 0.5)
